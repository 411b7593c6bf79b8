"""Measuring: files are checked as they are read, runs go on where they were cut off, and what is timed is right.

Tests of what PyTorch computes are skipped where it is not installed.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import sim
from calibrate.__main__ import main
from calibrate.data import COLUMNS, kernel_file, read_device, read_kernels
from calibrate.measure import command, grid
from calibrate.measure.grid import CPU_AXES, CUDA_AXES, KINDS, QUICK_AXES, Point, Shape
from calibrate.measure.progress import Progress
from calibrate.measure.store import Store
from sim import gpus, models
from sim.cost import load_calibration
from sim.errors import ScenarioError

ROOT = Path(__file__).resolve().parent.parent
HEADER = "backend,version,kernel,dtype,m,n,k,latency_us"
GOOD = "torch,2.13,linear,bfloat16,1,256,512,4.5"
LLAMA = Shape.of(models.parse("llama-3.1-8b"), layers=4)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch (an extra)")


# --- reading ---


def written(folder: Path, *lines: str, kind: str = "gemm") -> Path:
    path = folder / f"{kind}.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_file_is_read_with_its_types(tmp_path: Path) -> None:
    path = written(tmp_path, "note," + HEADER, "x," + GOOD)  # columns that are not known are left out
    frame = read_kernels(path, "gemm")
    assert list(frame.columns) == list(COLUMNS["gemm"])
    assert frame.iloc[0].to_list() == ["torch", "2.13", "linear", "bfloat16", 1, 256, 512, 4.5]
    packed = tmp_path / "gemm.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    pd.testing.assert_frame_equal(read_kernels(packed, "gemm"), frame)


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("latency_us", "-4.5", "a time is above 0, got -4.5"),
        ("latency_us", "0", "a time is above 0, got 0"),
        ("latency_us", "nan", "must be a number, got 'nan'"),
        ("latency_us", "inf", "a time is above 0, got inf"),
        ("latency_us", "", "missing"),
        ("latency_us", "4.5us", "must be a number, got '4.5us'"),
        ("m", "1.5", "must be a whole number of 1 or more, got 1.5"),
        ("m", "0", "must be a whole number of 1 or more, got 0"),
        ("m", "True", "must be a number, got 'True'"),
        ("n", "1e300", "must be a whole number of 1 or more, got 1e300"),
        ("kernel", "", "missing"),
        ("dtype", "bf16", "unknown: 'bf16'; did you mean bfloat16? accepted: bfloat16, float16, float32, fp8"),
    ],
)
@pytest.mark.parametrize(
    "before", [[], [GOOD, "", '"to\nrch",2.13,linear,bfloat16,1,256,512,4.5']], ids=["1st", "later"]
)
def test_a_bad_value_is_named_with_file_line_and_column(
    tmp_path: Path, column: str, value: str, what: str, before: list[str]
) -> None:
    cells = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | {column: value}
    path = written(tmp_path, HEADER, *before, ",".join(cells.values()), GOOD)
    line = 2 + len(before) + sum(each.count("\n") for each in before)
    with pytest.raises(ScenarioError) as error:
        read_kernels(path, "gemm")
    assert str(error.value) == f"{path}:{line}: {column}: {what}"


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([], ":1: empty; the first line names the columns"),
        (
            [HEADER.replace("latency_us", "ms")],
            ":1: latency_us: column missing among backend, version, kernel, dtype, m, ",
        ),
        ([HEADER.replace(",n,", ",m,")], ":1: m: column stands twice"),
        ([HEADER, GOOD, GOOD + ",7"], ":3: 9 values, but the first line names 8 columns"),
        ([HEADER, GOOD[:-4]], ":2: latency_us: missing"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, lines: list[str], what: str) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(ScenarioError, match="^" + re.escape(f"{path}{what}")):
        read_kernels(path, "gemm")


def test_what_is_no_csv_file_is_named(tmp_path: Path) -> None:
    for name, content, what in (
        ("a.csv.gz", b"plain text", "not a whole gzip file"),
        ("b.csv.gz", gzip.compress(b"x" * 999)[:20], "not a whole gzip file"),
        ("c.csv", b"\xff\xfe\x00", "not UTF-8 text"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScenarioError, match=what):
            read_kernels(tmp_path / name, "gemm")
    with pytest.raises(ScenarioError, match="No such file"):
        read_kernels(tmp_path / "none.csv", "gemm")


def test_a_step_may_lack_what_its_phase_does_not_have(tmp_path: Path) -> None:
    row = "torch,2,bfloat16,4,512,8,2,64,1024,4096,decode,8,0,0,128,99.5"
    path = written(tmp_path, ",".join(COLUMNS["steps"]), row, kind="steps")
    assert read_kernels(path, "steps").loc[0, ["prompt_len", "context_len"]].to_list() == [0, 128]
    path.write_text(path.read_text().replace("decode", "decoding"))
    with pytest.raises(ScenarioError, match=r"steps.csv:2: phase: unknown: 'decoding'; did you mean decode"):
        read_kernels(path, "steps")


def test_files_are_found_by_gpu(tmp_path: Path) -> None:
    folder = tmp_path / "kernels" / "h200_sxm"
    folder.mkdir(parents=True)
    path = written(folder, HEADER)
    assert kernel_file(tmp_path, "H200", "gemm") == path
    assert kernel_file(folder, "h200_sxm", "gemm") == path  # one card's own folder
    with pytest.raises(ScenarioError, match=r"kernels: unknown GPU 'h300_sxm'; did you mean h200_sxm\?"):
        kernel_file(tmp_path, "h300_sxm", "gemm")
    with pytest.raises(ScenarioError, match=r"has no steps.csv or steps.csv.gz"):
        kernel_file(tmp_path, "h200", "steps")


def test_device_json_is_checked(tmp_path: Path) -> None:
    for content, what in (
        ("{", "not JSON"),
        ("{}", "gpu: missing"),
        ('{"gpu": "h999"}', "gpu: unknown GPU 'h999'"),
        ('{"gpu": {"name": "x", "memory_gib": -1}}', "memory_gib"),
    ):
        (tmp_path / "device.json").write_text(content)
        with pytest.raises(ScenarioError, match=f"device.json: .*{what}"):
            read_device(tmp_path)


# --- the grid ---


@pytest.mark.parametrize(("axes", "dtypes"), [(CUDA_AXES, ["bfloat16", "fp8"]), (CPU_AXES, ["float32"])])
def test_the_grid_has_each_point_once_and_runs_coarse_to_fine(axes: grid.Axes, dtypes: list[str]) -> None:
    points = grid.points(LLAMA, axes, dtypes)
    assert len({(point.kind, point.key) for point in points}) == len(points)
    assert [point.level for point in points] == sorted(point.level for point in points)
    for kind in KINDS:  # a run that is cut off after the first level has the ends of each kind
        whole, coarse = ([p for p in each if p.kind == kind] for each in (points, grid.coarse(points)))
        assert 0 < len(coarse) < len(whole)
        for name in ("m", "tokens", "prompt_len", "context_len"):
            values = [each.values[name] for each in whole if name in each.values]
            assert not values or max(values) in [each.values[name] for each in coarse]
    for point in points:
        assert set(point.values) == set(grid.key_columns(point.kind))
        if point.kind == "steps":
            assert point.values["batch"] * point.values["context_len"] <= axes.most_context_tokens


def test_the_cuda_grid_spans_what_serving_does() -> None:
    points = grid.points(LLAMA, CUDA_AXES, ["bfloat16", "fp8"])
    assert {point.values["dtype"] for point in points if point.kind in ("steps", "gemm")} == {"bfloat16", "fp8"}
    steps = [point.values for point in points if point.kind == "steps"]
    decodes = [step for step in steps if step["phase"] == "decode"]
    prefills = [step for step in steps if step["phase"] == "prefill"]
    assert (min(s["batch"] for s in decodes), max(s["batch"] for s in decodes)) == (1, 256)
    assert (min(s["context_len"] for s in decodes), max(s["context_len"] for s in decodes)) == (128, 16384)
    assert (min(s["prompt_len"] for s in prefills), max(s["prompt_len"] for s in prefills)) == (128, 8192)
    assert any(s["past_len"] for s in prefills) and any(s["phase"] == "mixed" for s in steps)
    products = {(p.values["n"], p.values["k"]) for p in points if p.kind == "gemm"}
    assert products == {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)}


def test_a_shape_is_one_gpus_share() -> None:
    shape = Shape.of(models.parse("llama-3.1-70b"), tp=4)
    assert (shape.heads, shape.kv_heads, shape.ffn, shape.vocab, shape.layers) == (16, 2, 7168, 32064, 80)
    assert models.parse(shape.model("share")).layer_parameters(1) == models.parse("llama-3.1-70b").layer_parameters(4)
    one = models.parse(LLAMA.model("m"))
    assert LLAMA.elements == one.num_parameters - one.vocab_size * one.hidden_size  # all but the input table


# --- storing ---


def some_points() -> list[Point]:
    return [point for point in grid.points(LLAMA, QUICK_AXES, ["bfloat16"]) if point.kind == "gemm"][:5]


def test_rows_are_there_at_once_and_are_not_measured_again(tmp_path: Path) -> None:
    first, second, *_ = some_points()
    with Store(tmp_path, "torch", "2.13") as store:
        assert not store.has(first)
        store.add(first, "linear", 12.3456789)
        frame = read_kernels(tmp_path / "gemm.csv", "gemm")  # before the store is closed
        assert frame.latency_us.to_list() == [12.3457] and store.has(first)
    with Store(tmp_path, "torch", "2.13") as store:
        assert store.has(first) and not store.has(second)
    with Store(tmp_path, "torch", "2.14") as store:  # other software, other times
        assert not store.has(first)


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    points = some_points()
    with Store(tmp_path, "torch", "2.13") as store:
        for point in points:
            store.add(point, "linear", 10.0)
    path = tmp_path / "gemm.csv"
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last):  # wherever the kill fell, also before the line's end alone
        path.write_bytes(whole[:-cut])
        with Store(tmp_path, "torch", "2.13") as store:
            assert [store.has(point) for point in points] == [True] * 4 + [False]
            store.add(points[-1], "linear", 10.0)
        assert path.read_bytes() == whole
    path.write_bytes(b"backend,ver")  # killed within the first line
    with Store(tmp_path, "torch", "2.13") as store:
        assert store.rows("gemm") == 0
    assert path.read_text() == ",".join(COLUMNS["gemm"]) + "\n"


def test_files_that_rows_cannot_be_added_to_are_refused(tmp_path: Path) -> None:
    point = some_points()[0]
    path = written(tmp_path, HEADER.replace("m,n", "n,m"), GOOD)
    with Store(tmp_path, "torch", "2.13") as store, pytest.raises(ScenarioError, match=r"gemm.csv:1: the columns must"):
        store.has(point)
    path.rename(tmp_path / "gemm.csv.gz")
    with Store(tmp_path, "torch", "2.13") as store, pytest.raises(ScenarioError, match="unpack it"):
        store.has(point)


# --- the order of events ---


class FakeSession:
    """Times from a list by turn; what else happens at a call is `at`."""

    def __init__(self, turns: int, time_us: Callable[[int, Point], float | None]) -> None:
        self.turns, self._time_us, self.calls = turns, time_us, 0
        self.firsts: list[bool] = []

    def measure(self, point: Point, first: bool) -> tuple[str, float] | None:
        self.calls += 1
        self.firsts.append(first)
        found = self._time_us(self.calls, point)
        return None if found is None else ("linear", found)


def test_a_point_keeps_its_least_time_of_all_turns(tmp_path: Path) -> None:
    points = [Point(p.kind, 0, p.values) for p in some_points()[:3]]
    times = [5.0, 2.0, 3.0, 4.0, 9.0, 3.0]  # two turns over three points
    session = FakeSession(2, lambda call, _: times[call - 1])
    with Store(tmp_path, "torch", "2") as store:
        command._measure(points, session, store, math.inf)
    assert session.firsts == [True] * 3 + [False] * 3
    assert read_kernels(tmp_path / "gemm.csv", "gemm").latency_us.to_list() == [4.0, 2.0, 3.0]


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    points = [Point(p.kind, 0, p.values) for p in some_points()]

    def interrupted(call: int, _: Point) -> float:
        if call == 7:
            raise KeyboardInterrupt
        return 10.0 + call

    with Store(tmp_path, "torch", "2") as store:
        with pytest.raises(KeyboardInterrupt):
            command._measure(points, FakeSession(2, interrupted), store, math.inf)
        assert all(store.has(point) for point in points)
    assert sorted(read_kernels(tmp_path / "gemm.csv", "gemm").latency_us) == [11, 12, 13, 14, 15]


def test_a_run_ends_when_its_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = some_points()
    with Store(tmp_path, "torch", "2") as store:
        session = FakeSession(1, lambda call, _: time.sleep(0.2) or 1.0)
        command._measure(points, session, store, time.monotonic() + 0.3)
        assert session.calls == 2
        command._report(points, points, {"they do not fit into the memory": 1}, store, 0.4)
    told = capsys.readouterr().out
    assert "measured 2 points in 0.4 s, 0 were there already\n1 points left out: they do not fit" in told
    assert "out of time with 2 of 5 points to go" in told


def test_the_time_left_is_bounded_by_the_budget() -> None:
    now = time.monotonic()
    progress = Progress(100, now + 60)
    progress._begun = now - 10
    for _ in range(25):
        progress.done("gemm")
    assert progress.left_s(now) == pytest.approx(30, rel=0.01)
    progress._points = 1000
    assert progress.left_s(now) == pytest.approx(60, rel=0.01)


# --- the command ---


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        code = main(["measure", *arguments])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else -1
    told = capsys.readouterr()
    assert code == 2 and told.out == "" and len(told.err.splitlines()) == 1
    return told.err.strip()


def test_without_pytorch_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    told = refused(capsys, "--device", "cpu", "--out", str(tmp_path / "out"))
    assert told == "measuring needs PyTorch: pip install 'servesim[measure]'"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--dtypes", "bf16", "unknown dtype 'bf16'; did you mean bfloat16?"),
        ("--minutes", "0", "must be a number above 0, got '0'"),
        ("--minutes", "nan", "must be a number above 0"),
        ("--layers", "-1", "must be a whole number of 1 or more"),
        ("--tp", "two", "must be a whole number of 1 or more"),
        ("--device", "tpu", "invalid choice: 'tpu'"),
    ],
)
def test_a_bad_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, what: str
) -> None:
    told = refused(capsys, "--device", "cpu", "--out", str(tmp_path), f"{option}={value}")
    assert f"argument {option}: " in told and what in told


def test_calibrate_needs_no_pytorch_otherwise() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom calibrate.__main__ import main\n"
        "assert main(['show', 'ideal', '--gpu', 'h100_sxm']) == 0"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_page_names_options_that_exist() -> None:
    """Its commands of PyTorch stand in `shell` blocks, which test_readme does not run."""
    for arguments in measure_commands():
        parser = argparse.ArgumentParser()
        command.add_parser(parser.add_subparsers())
        parser.parse_args(arguments)


def measure_commands() -> list[list[str]]:
    page = (ROOT / "docs" / "measure.md").read_text("utf-8")
    found = re.findall(r"^```shell\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line)[3:] for block in found for line in block.splitlines() if " -m calibrate measure" in line]
    assert len(lines) >= 3
    return lines


# --- with PyTorch ---


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page's own quick command."""
    pytest.importorskip("torch")
    arguments = next(each for each in measure_commands() if "--quick" in each)
    place = arguments.index("--out") + 1
    folder = tmp_path_factory.mktemp("page") / arguments[place]
    # with time enough for a machine that has much else to do
    assert main([*arguments[:place], str(folder), *arguments[place + 1 :], "--minutes", "5"]) == 0
    return folder


def test_a_quick_run_on_the_cpu_measures_its_grid(measured: Path) -> None:
    shape = Shape.of(models.parse(grid.QUICK_MODEL), layers=4)
    points = grid.points(shape, QUICK_AXES, ["bfloat16"])
    for kind in KINDS:
        frame = read_kernels(measured / f"{kind}.csv", kind)
        keys = set(frame[grid.key_columns(kind)].astype(str).itertuples(index=False, name=None))
        assert keys == {point.key for point in points if point.kind == kind} and len(keys) == len(frame)
        assert kernel_file(measured, "cpu", kind) == measured / f"{kind}.csv"
    device = read_device(measured)
    assert device["model"] == shape.model("cpu-quick") and models.parse(device["model"]).num_hidden_layers == 2
    gpu = gpus.parse(device["gpu"])
    assert gpu.name == "cpu" and 1e-4 < gpu.bf16_tflops < 100 and 0.1 < gpu.memory_gb_per_s < 1e4
    assert {"card", "torch", "date", "python", "measured_peaks", "driver", "cuda"} <= set(device)


def test_times_grow_with_the_work(measured: Path) -> None:
    steps = read_kernels(measured / "steps.csv", "steps").set_index(["phase", "batch", "prompt_len", "context_len"])
    prefill = [steps.latency_us[("prefill", 1, prompt, 0)].min() for prompt in (16, 64, 128)]
    assert prefill[0] < prefill[2] and prefill[1] < 2 * prefill[2]
    gemm = read_kernels(measured / "gemm.csv", "gemm")
    wide = gemm[gemm.n == 2 * 768].set_index("m").latency_us
    assert wide[128] > 3 * wide[1]


def test_kernels_make_up_the_steps(measured: Path) -> None:
    """Within what other work on this machine may do meanwhile: no kernel is missing, and none counted twice."""
    read = {kind: read_kernels(measured / f"{kind}.csv", kind) for kind in KINDS}
    gemm = read["gemm"].set_index(["m", "n", "k"]).latency_us
    other = read["elementwise"].set_index(["op", "tokens"]).latency_us
    prompt = read["attention_prefill"].set_index(["batch", "prompt_len", "past_len"]).latency_us
    decode = read["attention_decode"].set_index(["batch", "context_len"]).latency_us
    shape = Shape.of(models.parse(grid.QUICK_MODEL))
    ratios = []
    for step in read["steps"].itertuples():
        tokens = step.batch * max(1, step.prompt_len)
        if step.phase == "mixed" or tokens not in QUICK_AXES.rows or step.batch not in QUICK_AXES.rows:
            continue
        layer = sum(gemm[(tokens, n, k)] for n, k in shape.products)
        layer += 2 * other[("rmsnorm", tokens)] + 2 * other[("add", tokens)]
        layer += other[("rope", tokens)] + other[("silu_mul", tokens)]
        attention = (step.batch, step.prompt_len, step.past_len)
        layer += prompt[attention] if step.phase == "prefill" else decode[(step.batch, step.context_len)]
        ends = other[("rmsnorm", step.batch)] + other[("embedding", tokens)]
        ends += gemm[(step.batch, shape.vocab, shape.hidden)]
        ratios.append(step.latency_us / (shape.layers * layer + ends))
    assert len(ratios) >= 10
    assert 0.5 < pd.Series(ratios).median() < 2.0, ratios


def test_a_second_run_measures_only_what_is_missing(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured / "gemm.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:9])
    device = (measured / "device.json").read_text()
    assert main(["measure", "--device", "cpu", "--quick", "--out", str(measured), "--minutes", "5"]) == 0
    assert "measured 2 points in " in capsys.readouterr().out
    again = path.read_text().splitlines(keepends=True)
    assert again[:-2] == lines[:-2] and [line.rsplit(",", 1)[0] for line in again] == [
        line.rsplit(",", 1)[0] for line in lines
    ]
    assert (measured / "device.json").read_text() == device


def test_a_folder_has_one_machine_and_one_shape(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "--device", "cpu", "--quick", "--threads", "2", "--out", str(measured))
    assert told.endswith("device.json: threads: 1, but this is 2; measure into another folder")
    assert "model: not the shape" in refused(capsys, "--device", "cpu", "--out", str(measured))


@needs_torch
def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    out = ("--out", str(tmp_path / "out"))
    if not torch.cuda.is_available():
        assert "finds no CUDA card here; try --device cpu" in refused(capsys, "--device", "cuda", *out)
    assert refused(capsys, "--device", "cpu", "--model", "lama", *out).startswith("--model: ")
    assert "--tp: 3 GPUs do not divide" in refused(
        capsys, "--device", "cpu", "--model", "llama-3.1-8b", "--tp", "3", *out
    )
    assert "no gated MLP" in refused(capsys, "--device", "cpu", "--model", "mixtral-8x7b", *out)
    (tmp_path / "file").write_text("")
    assert "--out: " in refused(capsys, "--device", "cpu", "--out", str(tmp_path / "file"))


def test_from_measuring_to_predicting_steps(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measure, fit, simulate, check: real steps of this machine, which no fit saw, from its kernels."""
    out = tmp_path / "cpu.yaml"
    words = ["--gpu", "cpu", "--engine", "torch", "--form", "roofline", "--data", str(measured), "--out", str(out)]
    assert main(["fit", *words]) == 0
    steps = []
    for calibration in (str(out), "ideal"):
        capsys.readouterr()
        assert main(["check", calibration, "--data", str(measured), "--all", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["errors"]
        steps += [row for row in rows if row["operator"].startswith("step") and row["range"] == "all"]
    assert [row["points"] for row in steps] == [len(read_kernels(measured / "steps.csv", "steps"))] * 2
    assert steps[0]["median_percent"] < 0.8 * steps[1]["median_percent"]  # peaks alone: a CPU reaches little of them
    device = read_device(measured)
    data = {
        "model": device["model"],
        "gpu": device["gpu"],
        "engine": {"max_model_len": 256, "num_gpu_blocks_override": 500},
        "cost": {"name": "roofline", "calibration": str(out), "noise": False},
        "workload": {"num_requests": 4, "arrivals": "batch", "prompt_tokens": 32, "output_tokens": 8},
    }
    summary = sim.simulate(sim.from_mapping(data, "x")).summary
    assert summary["note"].startswith("calibrated by cpu-torch-roofline") and summary["completed"] == 4


def test_what_was_measured_quickly_is_fitted_as_far_as_it_goes(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few points for the refined forms: plain rooflines, and the fit says so."""
    out = tmp_path / "quick.yaml"
    assert main(["fit", "--gpu", "cpu", "--engine", "torch", "--data", str(measured), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"note: gemm: {len(read_kernels(measured / 'gemm.csv', 'gemm'))} points, so a plain roofline" in told
    operators = load_calibration(out).operators
    assert operators.gemm.wave_share == 0 and operators.gemm.overlap_p is None
    assert set(operators.elementwise.by_pass) == {"embedding", "norms", "rope", "kv_write", "activation"}


@pytest.fixture
def torch_ops() -> Iterator[SimpleNamespace]:
    pytest.importorskip("torch")
    import torch

    from calibrate.measure import kernels, ops, session, stack, timing

    with torch.inference_mode():
        yield SimpleNamespace(torch=torch, kernels=kernels, ops=ops, session=session, stack=stack, timing=timing)


SMALL = Shape(layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab=512)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "fp8"])
def test_results_agree_with_fp64(torch_ops: SimpleNamespace, dtype: str) -> None:
    most = torch_ops.kernels.TOLERANCE[dtype]
    data = torch_ops.ops.Data("cpu", dtype, 2**16)
    for phase in ("prefill", "decode", "mixed"):
        assert torch_ops.stack.step_error(SMALL, data, phase) < 2 * most
    for point in grid.points(SMALL, QUICK_AXES, [dtype]):
        if point.kind != "steps" and point.level == 0:
            made = torch_ops.kernels.work(point, data, SMALL)
            assert made.error() < most, point


@pytest.mark.parametrize(
    ("op", "kind", "wrong"),
    [
        ("attend_prompt", "attention_prefill", lambda true, *a: true(*a) * 0.9),
        ("attend_decode", "attention_decode", lambda true, q, k, v: true(q, k[:, :, 1:], v[:, :, 1:])),
        ("rotate", "elementwise", lambda true, x, cos, sin: true(x, cos, -sin)),
        ("silu_mul", "elementwise", lambda true, x: true(x.flip(-1))),
        ("keep", "elementwise", lambda true, cache, new, start: None),
        ("rmsnorm", "elementwise", lambda true, x, weight: x * weight),
    ],
)
def test_a_wrong_result_is_not_measured(
    torch_ops: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, op: str, kind: str, wrong: Callable[..., Any]
) -> None:
    true = getattr(torch_ops.ops, op)
    monkeypatch.setattr(torch_ops.ops, op, lambda *arguments: wrong(true, *arguments))
    session = torch_ops.session.Session("cpu", 1, SMALL, quick=True)
    points = [point for point in grid.points(SMALL, QUICK_AXES, ["float32"]) if point.kind == kind]
    with pytest.raises(ScenarioError, match=rf"{kind} .*differs from fp64 by .*: not measured"):
        for point in points:
            session.measure(point)
    step = next(p for p in grid.points(SMALL, QUICK_AXES, ["float32"]) if p.kind == "steps")
    if op in ("silu_mul", "rmsnorm", "attend_prompt"):
        with pytest.raises(ScenarioError, match="a small prefill step in float32: differs from fp64"):
            torch_ops.session.Session("cpu", 1, SMALL, quick=True).measure(step)


def test_what_pytorch_cannot_run_is_left_out(torch_ops: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    session = torch_ops.session.Session("cpu", 1, SMALL, quick=True)
    point = some_points()[0]

    def fails(error: Exception) -> Callable[..., Any]:
        def work(*_: Any) -> Any:
            raise error

        return work

    monkeypatch.setattr(torch_ops.session, "work", fails(RuntimeError("no kernel\nfor this")))
    assert session.measure(point) is None
    monkeypatch.setattr(torch_ops.session, "work", fails(torch_ops.torch.cuda.OutOfMemoryError("full")))
    assert session.measure(point) is None
    assert session.skipped == {"PyTorch cannot run them: no kernel": 1, "they do not fit into the memory": 1}


def test_a_prompt_behind_a_cache_sees_all_of_it(torch_ops: SimpleNamespace) -> None:
    """A chunk's attention is the tail of that of the whole prompt."""
    data = torch_ops.ops.Data("cpu", "float32", 1)
    q, keys, values = data.normal(24, 4, 32), data.normal(1, 2, 24, 32), data.normal(1, 2, 24, 32)
    whole = torch_ops.ops.attend_prompt(q, keys, values, 0)
    chunk = torch_ops.ops.attend_prompt(q[16:], keys, values, 16)
    assert torch_ops.torch.allclose(whole[16:], chunk, atol=1e-5)
    last = torch_ops.ops.attend_decode(q[23:], keys, values)
    assert torch_ops.torch.allclose(whole[23:], last, atol=1e-5)


def test_no_kernel_finds_its_weights_where_its_last_call_left_them(torch_ops: SimpleNamespace) -> None:
    data = torch_ops.ops.Data("cpu", "bfloat16", footprint=10 * 2 * 256 * 128 - 1)
    point = Point("gemm", 0, {"dtype": "bfloat16", "m": 3, "n": 256, "k": 128})
    calls = torch_ops.kernels.work(point, data, SMALL).calls
    weights = [call.func.exact for call in calls]
    assert len({weight.data_ptr() for weight in weights}) == 10
    results = [call() for call in calls]
    assert all(torch_ops.torch.equal(each, results[0]) for each in results)
    decode = Point("attention_decode", 0, {"batch": 2, "context_len": 64})
    assert len(torch_ops.kernels.work(decode, data, SMALL).calls) == 20  # keys and values of 2 x 2 heads x 64 x 32


def test_the_cpu_timer_takes_the_median_of_one_call(torch_ops: SimpleNamespace) -> None:
    effort = torch_ops.timing.Effort(block_s=1e-3, least=5, most=5)
    timer = torch_ops.timing.CpuTimer(effort, threads=2)  # wall time
    calls: list[str] = []

    def sleeper(name: str) -> Callable[[], None]:
        return lambda: (calls.append(name), time.sleep(0.004))[0]

    seconds, clean = timer.median_s([sleeper("a"), sleeper("b")])
    assert 0.004 <= seconds < 0.012 and clean
    assert calls[:2] == ["a", "b"] and abs(calls.count("a") - calls.count("b")) <= 1  # in turn
    busy = torch_ops.timing.CpuTimer(effort, threads=1)
    assert busy.median_s([lambda: time.sleep(0.004)])[0] < 0.002  # time that the thread did not have


class FakeCuda:
    """A card on which each call takes `ms`, as far as CudaTimer asks."""

    def __init__(self, ms: float, graphs: bool) -> None:
        self.clock, self.calls, self.capturing, self.replays = 0.0, 0, False, 0
        outer = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = outer.clock

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        class CUDAGraph:
            held = 0

            def replay(self) -> None:
                outer.replays += 1
                outer.clock += self.held * ms

        class Stream:
            def wait_stream(self, _: Any) -> None:
                pass

        class Within:
            def __init__(self, graph: Any) -> None:
                self.graph = graph

            def __enter__(self) -> None:
                outer.capturing, outer.calls = isinstance(self.graph, CUDAGraph), 0
                if outer.capturing and not graphs:
                    outer.capturing = False
                    raise RuntimeError("operation not permitted when stream is capturing")

            def __exit__(self, *_: Any) -> None:
                if outer.capturing:
                    self.graph.held = outer.calls
                outer.capturing = False

        def call() -> None:
            self.calls += 1
            if not self.capturing:
                self.clock += ms

        self.call = call
        self.names = {
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "Stream": Stream,
            "graph": Within,
            "stream": Within,
            "current_stream": Stream,
            "synchronize": lambda: None,
        }


@pytest.mark.parametrize("graphs", [True, False])
def test_the_cuda_timer_divides_by_the_calls_of_its_graph(
    torch_ops: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    fake = FakeCuda(0.0125, graphs)
    for name, value in fake.names.items():
        monkeypatch.setattr(torch_ops.torch.cuda, name, value)
    timer = torch_ops.timing.CudaTimer(torch_ops.timing.Effort(block_s=300e-6, least=3, most=3))
    seconds, clean = timer.median_s([fake.call] * 5)
    assert seconds == pytest.approx(12.5e-6) and clean is graphs
    assert fake.replays == (4 if graphs else 0)  # one to warm up, three samples


@needs_torch
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    arguments = ["measure", "--device", "cpu", "--quick", "--out", str(tmp_path), "--minutes", "5"]
    program = [sys.executable, "-m", "calibrate", *arguments]
    child = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    path = tmp_path / "gemm.csv"
    deadline = time.monotonic() + 240
    while not (path.exists() and path.read_text().count("\n") > 3) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.wait()
    before = path.read_text().splitlines()
    assert main(arguments) == 0
    after = path.read_text().splitlines()
    assert after[: len(before) - 1] == before[:-1] and len(after) == 1 + 22
    assert json.loads((tmp_path / "device.json").read_text())["device"] == "cpu"
