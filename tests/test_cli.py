"""The command line: one plain message and exit code 2 for what is wrong, and nothing lost or half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sim import cli, results

ROOT = Path(__file__).resolve().parent.parent
STANDARD = str(ROOT / "scenarios" / "standard_work.yaml")
CHAT = str(ROOT / "scenarios" / "chat_azure_2023.yaml")
SHORT = ["--set", "workload.num_requests=40"]
FILES = {"scenario.yaml", "requests.parquet", "spans.parquet", "steps.parquet", "summary.json", "run.json"}


def call(*arguments: str | Path) -> int:
    """The exit code, also where the argument parser leaves."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "none.yaml: no such file"),
        (["run", STANDARD, "--set", "policy.max_num_seq=4"], "policy.max_num_seq: unknown key"),
        (["run", STANDARD, "--set", "seed"], "--set seed"),
        (["run", STANDARD, "--policy", "vlm"], "unknown policy 'vlm'; did you mean vllm?"),
        (["run", STANDARD, "--set", "model=llama-3.1-70b"], "does not fit"),
        (["check", STANDARD, "--set", "engine.max_model_len=9000000"], "engine.max_model_len: "),
        (["compare", STANDARD], "policies: missing"),
        (["compare", CHAT, "--policies", "static,nonsense"], "unknown policy 'nonsense'"),
        (["compare", CHAT, "--policies", "static,static"], "--policies"),
        (["compare", CHAT, "--policies", "static,,vllm"], "--policies"),
        (["compare", CHAT, "--rates", "2,fast"], "--rates"),
        (["compare", CHAT, "--rates", "0"], "--rates"),
        (["explain", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_one_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert len(shown.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_told_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", STANDARD, "--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err


def test_messages_are_not_wrapped_and_there_is_no_progress_where_there_is_no_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim", "run", STANDARD, "--set", "x" * 300 + "=1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": "40", "PATH": "/bin"})
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    good = subprocess.run([*command[:5], *SHORT, *command[-2:]], cwd=ROOT, capture_output=True, text=True)
    assert good.returncode == 0
    assert good.stderr == ""


def test_run_writes_the_folder_and_prints_as_vllm_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "out"
    assert call("run", STANDARD, *SHORT, "--out", folder) == 0
    shown = capsys.readouterr().out
    assert "GPU KV cache size: 439,728 tokens" in shown
    assert "Maximum concurrency for 131,072 tokens per request: 3.35x" in shown
    assert "cost: calibrated by h100_sxm-vllm (median error of its kernels: matrix products " in shown
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    again = tmp_path / "again"
    assert call("run", folder / "scenario.yaml", "--out", again) == 0
    for name in FILES - {"run.json"}:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name


def test_the_ideal_roofline_is_called_optimistic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", STANDARD, *SHORT, "--set", "cost.calibration=ideal", "--out", tmp_path / "out") == 0
    assert "cost: roofline without overheads, optimistic" in capsys.readouterr().out


def test_a_result_is_replaced_and_anything_else_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert call("run", STANDARD, *SHORT, "--out", folder) == 0
    assert call("run", STANDARD, *SHORT, "--set", "seed=2", "--out", folder) == 0
    assert json.loads((folder / "summary.json").read_text())["seed"] == 2
    for name, content in (("other", "notes.txt"), ("file", None)):
        place = tmp_path / name
        if content:
            place.mkdir()
            (place / content).write_text("mine")
        else:
            place.write_text("mine")
        capsys.readouterr()
        assert call("run", STANDARD, *SHORT, "--out", place) == 2
        assert str(place) in capsys.readouterr().err
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_what_was_there(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    assert call("run", STANDARD, *SHORT, "--out", folder) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(results, "simulate", broken)
    if error is KeyboardInterrupt:
        assert call("run", STANDARD, *SHORT, "--out", folder) == 130
    else:
        with pytest.raises(RuntimeError):
            call("run", STANDARD, *SHORT, "--out", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_compare_writes_runs_table_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert call("compare", CHAT, *SHORT, "--policies", "static,vllm", "--rates", "2,6", "--out", folder) == 0
    assert {"static-2", "vllm-2", "static-6", "vllm-6", "comparison.csv", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    header, *rows = (folder / "comparison.csv").read_text().splitlines()
    assert header == "policy,rate_per_s,metric,value,ci_low,ci_high,replications"
    assert any(row.startswith("vllm,6.0,p99_ttft_ms,") for row in rows)
    assert "TTFT" in capsys.readouterr().out
    arrivals = [(folder / run / "requests.parquet") for run in ("static-6", "vllm-6")]
    import pyarrow.parquet as pq

    first, second = (pq.read_table(path, columns=["request_id", "arrival_s", "prompt_tokens"]) for path in arrivals)
    assert first.equals(second)  # the same requests for every policy


def test_check_and_list_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", STANDARD, "--json") == 0
    sizes = json.loads(capsys.readouterr().out)
    keys = ("kv_blocks", "kv_tokens", "kv_gib", "weights_gib", "activations_gib", "max_model_len", "max_concurrency")
    assert all(isinstance(sizes[key], int | float) for key in keys)
    assert sizes["kv_tokens"] == 16 * sizes["kv_blocks"]
    assert call("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    policy = next(row for row in listed["policies"] if row["name"] == "vllm")
    assert {row["name"] for row in policy["parameters"]} >= {"max_num_seqs", "async_scheduling", "watermark"}
    for kind in ("policies", "routers", "arrivals", "lengths", "models", "gpus"):
        assert listed[kind], kind
        assert all(row["name"] for row in listed[kind])


def test_replications_stand_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert call("run", STANDARD, *SHORT, "--set", "replications=2", "--out", folder) == 0
    assert {path.name for path in folder.iterdir()} >= {"rep-0", "rep-1"}
    plain = tmp_path / "plain"
    assert call("run", STANDARD, *SHORT, "--out", plain) == 0
    assert (folder / "rep-0" / "requests.parquet").read_bytes() == (plain / "requests.parquet").read_bytes()
    assert (folder / "rep-1" / "requests.parquet").read_bytes() != (plain / "requests.parquet").read_bytes()
