"""Calibration files: what is read, what is refused and in which words, and how one is shown."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from calibrate.__main__ import main
from sim import from_mapping, gpus, models, simulate
from sim.cost import Calibration, Operators, Roofline, find_calibration, load_calibration, packaged
from sim.cost import calibration as module
from sim.errors import Complaint, ScenarioError
from sim.scenario import Engine

ROOT = Path(__file__).parent.parent
TEXT = """\
schema: 1
name: h100_sxm-vllm
gpu: h100_sxm
engine: vllm
software: {vllm: 0.24.0, cuda: "12.9"}
source: our own measurements
licence: Apache-2.0
date: 2026-01-31
operators:
  gemm: {compute_fraction: 0.81, bandwidth_fraction: 0.87, floor_s: 3.8e-6}
  attention_decode:
    bandwidth_fraction: 0.85
    floor_s: 12.0e-6
  all_reduce: {bandwidth_fraction: 0.6, floor_s: 4.3e-6}
host_s: 0.0014
front_end_s: 0.014
response_s: 0.002
noise: {sigma: 0.04}
errors: {gemm: {median_percent: 5.1}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "h100.yaml"
    path.write_text(TEXT)
    return path


def test_what_is_read(file: Path) -> None:
    found = load_calibration(file)
    assert found.operators.gemm.compute_fraction == 0.81
    assert found.operators.attention_decode.compute_fraction == 1.0
    assert found.operators.logits == Operators().logits  # left out: ideal
    assert (found.host_s, found.front_end_s, found.response_s, found.noise.sigma) == (0.0014, 0.014, 0.002, 0.04)
    assert found.date == "2026-01-31"
    assert found.errors == {"gemm": {"median_percent": 5.1}}
    assert not found.ideal
    dumped = yaml.safe_load(yaml.safe_dump({"schema": 1, **found.model_dump()}))
    assert Calibration.model_validate({k: v for k, v in dumped.items() if k != "schema"}) == found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema: 1\n", "", ":1: schema: missing; it must be 1"),
        ("schema: 1\n", "schema: 2\n", ":1: schema: must be 1, the only one that this version reads, got 2"),
        ("schema: 1\n", "schema: true\n", ":1: schema: must be 1, the only one that this version reads, got true"),
        ("source: our own measurements\n", "", ":1: source: missing; it must be text"),
        ("0.81", "1.2", ":10: operators.gemm.compute_fraction: must be a number over 0 and at most 1, got 1.2"),
        ("0.85", "0", ":12: operators.attention_decode.bandwidth_fraction: must be a number over 0 and at most 1"),
        ("12.0e-6", "-1.0", ":13: operators.attention_decode.floor_s: must be a number from 0 to 1, got -1.0"),
        (
            "12.0e-6",
            "12e-6",
            ":13: operators.attention_decode.floor_s: must be a number from 0 to 1, got '12e-6'; YAML reads",
        ),
        ("host_s: 0.0014", "host_s: .nan", ":15: host_s: must be a number from 0 to 60, got .nan"),
        ("  gemm:", "  gem:", ":10: operators.gem: unknown key; did you mean gemm?"),
        ("host_s:", "hots_s:", ":15: hots_s: unknown key of a calibration; did you mean host_s?"),
        ("front_end_s: 0.014", "host_s: 0.014", ":16: host_s: repeated key"),
        ("{sigma: 0.04}", "0.04", ":18: noise: must be a mapping with the keys sigma, prefill_sigma, got 0.04"),
        ("errors: {gemm", "errors: {{gemm", ":19: "),
    ],
)
def test_what_is_refused_names_file_line_and_key(file: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(ScenarioError) as caught:
        load_calibration(file)
    assert str(caught.value).startswith(f"{file}{message}"), str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_and_paths(file: Path) -> None:
    assert find_calibration("ideal", "h100_sxm").ideal
    assert find_calibration("default", "none_of_ours").ideal
    assert find_calibration("anything", None, file).name == "h100_sxm-vllm"
    with pytest.raises(ScenarioError, match="unknown calibration 'idael'; did you mean ideal"):
        find_calibration("idael", None)
    with pytest.raises(ScenarioError, match=r"missing\.yaml: no such file"):
        find_calibration("missing.yaml", None)


def test_a_packaged_file_is_the_default_of_its_gpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in packaged():
        found = load_calibration(module.FOLDER / f"{name}.yaml")
        assert found.name == name == f"{found.gpu}-{found.engine}" and not found.ideal
    file.rename(file.with_name("h100_sxm-vllm.yaml"))
    monkeypatch.setattr(module, "FOLDER", file.parent)
    assert packaged() == ["h100_sxm-vllm"]
    for engine in ("vllm", "of_no_calibration"):
        assert find_calibration("default", "h100_sxm", engine=engine).name == "h100_sxm-vllm"
    assert find_calibration("default", "../h100_sxm").ideal and find_calibration("default", "none").ideal
    assert find_calibration("h100_sxm-vllm", "a100_sxm").name == "h100_sxm-vllm"
    assert find_calibration("ideal", "h100_sxm").ideal


def test_in_a_scenario_relative_to_its_file(file: Path) -> None:
    cost = Roofline("h100.yaml")
    cost.verify(lambda path: file.parent / path)
    shape = models.parse("llama-3.1-8b"), gpus.parse("h100_sxm"), Engine()
    pricer = cost.pricer(*shape, None, lambda path: file.parent / path)
    label = "calibrated by h100_sxm-vllm (median error of its kernels: matrix products 5 %)"
    assert (pricer.label, pricer.front_end_s, pricer.response_s) == (label, 0.014, 0.002)
    with pytest.raises(Complaint, match=r"nowhere/h100\.yaml: no such file") as caught:
        cost.verify(lambda path: Path("nowhere") / path)
    assert caught.value.path == ("calibration",)
    Roofline("ideal").verify(Path)
    Roofline("default").verify(Path)


def test_show(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file), "--gpu", "h100_sxm"]) == 0
    shown = capsys.readouterr().out
    lines = shown.split("\noperator ")[1].split("\n\n")[0].splitlines()[1:]
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["gemm"] == ["0.810", "0.870", "3.80", "max", "801/1603", "2914"]
    assert rows["attention_decode"] == ["1.000", "0.850", "12.00", "max", "989", "2848"]
    assert rows["all_reduce"] == ["-", "0.600", "4.30", "max", "-", "270"]
    assert rows["logits"][-2:] == ["as", "gemm"]
    for words in ("vllm 0.24.0, cuda 12.9", "our own measurements", "1.4 ms of host time"):
        assert words in shown
    assert "5.1" in shown.split("errors of the fit")[1]
    assert main(["show", "ideal"]) == 0
    shown = capsys.readouterr().out
    assert "TFLOP/s" not in shown


@pytest.mark.parametrize("name", packaged())
def test_what_is_packaged_is_shown_in_110_columns_with_its_refinements(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", name, "--gpu", load_calibration(module.FOLDER / f"{name}.yaml").gpu]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 110
    of_kernels = ("norms ", "rope ") if name.endswith("-torch") else ("waves ", "GPUs ")
    for words in (*of_kernels, "occupancy ", "blocks ", "prompt tokens ", "errors of the fit "):
        assert words in shown, words
    kinds = shown.split("\noperator ")[1].split("\n\n")[0].splitlines()[1:]
    assert not any("_" in line[82:].replace("kv_write", "") for line in kinds)  # each number has its words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "idael"], "did you mean ideal"),
        (["show", "ideal", "--gpu", "h10_sxm"], "did you mean h100_sxm"),
        (["shwo", "ideal"], "invalid choice: 'shwo'"),
        (["show"], "the following arguments are required"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "calibrate", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_a_run_beyond_the_measurements_says_so_once(file: Path) -> None:
    """By what its steps really held, whether they were simulated singly or in stretches."""
    ranges = "{gemm_rows: [1, 64], decode_sequences: [1, 8], decode_context_tokens: [1, 400], prompt_tokens: [1, 100]}"
    file.write_text(file.read_text("utf-8") + f"ranges: {ranges}\n", "utf-8")
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "cost": {"name": "roofline", "calibration": str(file), "noise": False},
        "workload": {
            "num_requests": 4,
            "arrivals": "batch",
            "prompt_tokens": 90,
            "output_tokens": 20,
            "ignore_eos": True,
        },
    }
    said = []
    for fast in (True, False):
        found = simulate(from_mapping({**data, "fast_forward": fast}, "x"))
        said.append([line for line in found.warnings if "beyond" in line])
    expected = "gemm rows 360 (measured to 64); decode context tokens 436 (measured to 400)"
    assert said == [[f"beyond the measurements of h100_sxm-vllm, where its rooflines are continued: {expected}"]] * 2
