"""Importing published measurements: the tables of aiconfigurator-core and the profiles of Vidur."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from calibrate import importing_aic
from calibrate.__main__ import main
from calibrate.data import COLUMNS, kernel_file, read_kernels
from sim.errors import ScenarioError

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT.parent / "shared" / "measurements"
VIDUR = ROOT / "tests" / "data" / "vidur"
GEMM = {"kernel_source": "linear", "gemm_dtype": "bfloat16", "m": 8, "n": 256, "k": 512, "latency": 0.0045}
ATTENTION = {
    "kernel_source": "fa3",
    "batch_size": 2,
    "isl": 128,
    "num_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "fp8",
    "step": 0,
    "window_size": 0,
    "latency": 0.02,
}


# --- aiconfigurator-core ---


def table(package: Path, place: str, rows: list[dict[str, Any]]) -> Path:
    """One file of a package, parquet or text by its name."""
    path = package / "systems" / "data" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of the same layout, small."""
    root = tmp_path / "aiconfigurator_core"
    more = [GEMM, {**GEMM, "m": 16, "latency": 0.005}]
    table(root, "h100_sxm/gemm/vllm/0.9.0/gemm_perf.parquet", more)
    table(root, "h100_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", [*more, {**GEMM, "gemm_dtype": "int4_wo"}])
    table(root, "h100_sxm/gemm/trtllm/1.3.0rc20/gemm_perf.parquet", [GEMM] * 3)
    table(root, "h100_sxm/gemm/trtllm/1.3.0rc23/gemm_perf.parquet", [GEMM])  # only adds to the one before
    windowed = {**ATTENTION, "window_size": 1024}
    table(root, "h100_sxm/attention/vllm/0.24.0/context_attention_perf.parquet", [ATTENTION, windowed])
    decode = {**ATTENTION, "isl": 1, "step": 1023}
    table(root, "h100_sxm/attention/vllm/0.24.0/generation_attention_perf.parquet", [decode])
    reduced = {"op_name": "all_reduce", "kernel_source": "graph", "allreduce_dtype": "bfloat16", "num_gpus": 4}
    table(
        *(root, "h100_sxm/comm/vllm/0.24.0/custom_allreduce_perf.parquet"),
        [{**reduced, "message_size": 1024, "latency": 0.005}],
    )
    gathered = {"op_name": "all_gather", "kernel_source": "NCCL", "nccl_dtype": "int8", "num_gpus": 8}
    table(
        *(root, "h100_sxm/comm/nccl/2.29.2/nccl_perf.parquet"), [{**gathered, "message_size": 1024, "latency": 0.006}]
    )
    return root


def imported(out: Path, *arguments: str, gpu: str = "h100_sxm") -> int:
    return main(["import", *arguments, "--gpu", gpu, "--out", str(out)])


def test_tables_come_in_our_columns(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert imported(out, "aiconfigurator", "--package", str(package)) == 0
    told = capsys.readouterr().out
    read = {
        kind: read_kernels(kernel_file(out, "h100_sxm", kind), kind) for kind in COLUMNS if f"{kind}.csv.gz" in told
    }
    assert set(read) == {"gemm", "attention_prefill", "attention_decode", "collectives"}
    assert read["gemm"].to_numpy().tolist() == [
        *[["trtllm", "1.3.0rc20", "linear", "bfloat16", 8, 256, 512, 4.5]] * 3,
        ["vllm", "0.24.0", "linear", "bfloat16", 8, 256, 512, 4.5],  # ms there, us here
        ["vllm", "0.24.0", "linear", "bfloat16", 16, 256, 512, 5.0],
    ]
    heads = ["vllm", "0.24.0", "fa3", "bfloat16", "fp8", 2, 16, 2, 128]
    assert read["attention_prefill"].to_numpy().tolist() == [[*heads, 128, 0, 20.0]]
    assert read["attention_decode"].to_numpy().tolist() == [[*heads, 1024, 20.0]]  # isl + step
    assert read["collectives"].to_numpy().tolist() == [
        ["vllm", "0.24.0", "all_reduce", "graph", "bfloat16", 4, 1024, 2048, 5.0],
        ["nccl", "2.29.2", "all_gather", "NCCL", "int8", 8, 1024, 1024, 6.0],
    ]
    assert "left out: 1 rows of dtype int4_wo; 1 rows of attention with a window" in told
    source = json.loads((out / "kernels" / "h100_sxm" / "source.json").read_text())
    assert source["licence"] == "Apache-2.0" and source["gpu"] == "h100_sxm"


def test_one_engine_alone(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(tmp_path, "aiconfigurator", "--package", str(package), "--backend", "trtllm") == 0
    assert set(read_kernels(kernel_file(tmp_path, "h100_sxm", "gemm"), "gemm").backend) == {"trtllm"}
    assert imported(tmp_path / "b", "aiconfigurator", "--package", str(package), "--backend", "vlm") == 2
    assert "--backend: unknown 'vlm'; did you mean vllm?" in capsys.readouterr().err


def test_older_packages_have_text_files(tmp_path: Path) -> None:
    root = tmp_path / "package"
    table(root, "h100_sxm/vllm/0.8.0/gemm_perf.txt", [GEMM])
    assert imported(tmp_path, "aiconfigurator", "--package", str(root)) == 0
    frame = read_kernels(kernel_file(tmp_path, "h100_sxm", "gemm"), "gemm")
    assert frame.loc[0, ["backend", "version", "latency_us"]].to_list() == ["vllm", "0.8.0", 4.5]


def test_versions_are_ordered_as_numbers() -> None:
    names = ["0.5.6.post2", "0.5.10", "1.3.0rc9", "1.3.0rc20", "1.3.0", "1.10.0"]
    mixed = names[3:] + names[:3]
    assert sorted(mixed, key=importing_aic._order) == names


@pytest.mark.parametrize(
    ("place", "row", "what"),
    [
        ("gemm_perf.parquet", {**GEMM, "latency": -1.0}, "parquet: row 2: latency: a time is above 0, got -1.0"),
        ("gemm_perf.parquet", {**GEMM, "latency": float("nan")}, "parquet: row 2: latency: must be a number, got nan"),
        ("gemm_perf.parquet", {**GEMM, "m": 0}, "parquet: row 2: m: must be a whole number of 1 or more, got 0"),
        ("gemm_perf.txt", {**GEMM, "latency": -1.0}, "txt:3: latency: a time is above 0, got -1.0"),
    ],
)
def test_bad_rows_of_a_package_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, row: dict[str, Any], what: str
) -> None:
    table(tmp_path, f"h100_sxm/gemm/vllm/1/{place}", [GEMM, row])
    assert imported(tmp_path / "out", "aiconfigurator", "--package", str(tmp_path)) == 2
    assert capsys.readouterr().err.strip().endswith(what)
    assert not (tmp_path / "out").exists()


def test_bad_packages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(gpu: str = "h100_sxm") -> str:
        assert imported(tmp_path / "out", "aiconfigurator", "--package", str(tmp_path), gpu=gpu) == 2
        return capsys.readouterr().err

    assert "has no systems/data" in told()
    path = table(tmp_path, "h100_sxm/gemm/vllm/1/gemm_perf.parquet", [{"m": 1}])
    assert "unknown GPU 'h10'; did you mean h100_sxm?" in told("h10")
    assert "gemm_perf.parquet: kernel_source: column missing among m" in told()
    path.write_text("no parquet")
    assert "gemm_perf.parquet: not a readable parquet file" in told()
    path.unlink()
    assert "has none of the tables gemm_perf, " in told()


def test_the_installed_package_is_found_without_running_it(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importing_aic, "find_spec", lambda name: None)
    assert imported(tmp_path / "out", "aiconfigurator") == 2
    assert capsys.readouterr().err == "aiconfigurator-core is not installed: pip install 'servesim[aic]'\n"
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(package.parent))
    (package / "__init__.py").write_text("raise RuntimeError('run')")
    assert imported(tmp_path / "out", "aiconfigurator") == 0
    assert "aiconfigurator_core" not in sys.modules


def test_nothing_is_overwritten(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("aiconfigurator", "--package", str(package))
    assert imported(tmp_path, *arguments) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "kernels").rglob("*.gz")}
    assert imported(tmp_path, *arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "kernels").rglob("*.gz")} == before
    assert imported(tmp_path / "again", *arguments) == 0
    for path, content in before.items():  # the same rows, the same bytes
        assert (tmp_path / "again" / path.relative_to(tmp_path)).read_bytes() == content


@pytest.mark.skipif(
    importing_aic.find_spec(importing_aic.PACKAGE) is None, reason="needs aiconfigurator-core (an extra)"
)
@pytest.mark.parametrize("kind", ["gemm", "attention_decode", "moe"])
def test_the_real_package_has_every_row_of_the_shared_files(kind: str, tmp_path: Path) -> None:
    if not MEASUREMENTS.is_dir():
        pytest.skip("no shared measurements here")
    assert imported(tmp_path, "aiconfigurator", gpu="a100_sxm") == 0
    theirs = read_kernels(kernel_file(MEASUREMENTS, "a100_sxm", kind), kind)
    ours = read_kernels(kernel_file(tmp_path, "a100_sxm", kind), kind)
    shape = [name for name in COLUMNS[kind] if name != "latency_us"]
    merged = theirs.merge(ours, on=shape, how="left", suffixes=("", "_ours"))
    assert ((merged.latency_us_ours / merged.latency_us - 1).abs() < 1e-4).all()


# --- Vidur ---


def test_a_layer_becomes_products_and_elementwise_work(tmp_path: Path) -> None:
    assert imported(tmp_path, "vidur", str(VIDUR / "mlp.csv")) == 0
    gemm = read_kernels(kernel_file(tmp_path, "h100_sxm", "gemm"), "gemm")
    # one of four GPUs' share of Llama-2-70B: 16 query and 2 key/value heads of 128, gate and up of 7168 columns each
    found = gemm[gemm.m == 512].set_index("kernel")[["n", "k", "latency_us"]]
    assert found.loc["attn_pre_proj"].to_list() == [(16 + 2 * 2) * 128, 8192, 41.0]
    assert found.loc["attn_post_proj"].to_list() == [8192, 16 * 128, 33.5]
    assert found.loc["mlp_up_proj"].to_list() == [2 * 7168, 8192, 215.0]
    assert found.loc["mlp_down_proj"].to_list() == [8192, 7168, 110.0]
    assert set(gemm.dtype) == {"float16"} and set(gemm.m) == {1, 512}
    other = read_kernels(kernel_file(tmp_path, "h100_sxm", "elementwise"), "elementwise")
    silu = other[(other.op == "silu_mul") & (other.tokens == 512)].iloc[0]
    assert (silu.width, silu.bytes, silu.latency_us) == (7168, 3 * 2 * 512 * 7168, 19.0)
    assert (other.op == "rmsnorm").sum() == 3  # two a layer, and one time is missing


def test_attention_becomes_prompts_and_decodes(tmp_path: Path) -> None:
    assert imported(tmp_path, "vidur", str(VIDUR / "attention.csv")) == 0
    prompts = read_kernels(kernel_file(tmp_path, "h100_sxm", "attention_prefill"), "attention_prefill")
    heads = ["sarathi", "vidur", "flashinfer", "float16", "float16"]
    assert prompts.to_numpy().tolist() == [[*heads, 1, 16, 2, 128, 512, 1024, 90.0]]
    decodes = read_kernels(kernel_file(tmp_path, "h100_sxm", "attention_decode"), "attention_decode")
    assert decodes.to_numpy().tolist() == [[*heads, 32, 16, 2, 128, 2048, 71.0]]


def test_all_reduce_is_taken_within_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(tmp_path, "vidur", str(VIDUR / "all_reduce.csv")) == 0
    frame = read_kernels(kernel_file(tmp_path, "h100_sxm", "collectives"), "collectives")
    assert frame.to_numpy().tolist() == [["sarathi", "vidur", "all_reduce", "nccl", "float16", 8, 1024, 2048, 37.0]]
    assert "left out: 1 rows of all-reduce across nodes" in capsys.readouterr().out


def test_a_tidy_file_is_read_by_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ops.csv"
    text = (
        "gpu,model,tp,num_tokens,n_head,n_kv_head,n_embd,n_ffn,gated,attn_pre_proj_ms,attn_post_proj_ms,mlp_up_proj_ms"
    )
    rows = ["a100,m,1,8,4,4,256,1024,True,0.1,0.2,0.3,0.4,0.01", "h100,m,1,8,4,4,256,1024,False,0.5,0.6,0.7,0.8,0.02"]
    path.write_text("\n".join([f"{text},mlp_down_proj_ms,add_ms", *rows]) + "\n")
    assert imported(tmp_path, "vidur", str(path)) == 0
    gemm = read_kernels(kernel_file(tmp_path, "h100_sxm", "gemm"), "gemm").set_index("kernel")
    assert gemm.latency_us.to_list() == [500.0, 600.0, 700.0, 800.0] and gemm.n["mlp_up_proj"] == 1024
    assert imported(tmp_path, "vidur", str(path), gpu="b200") == 2
    assert "no rows for b200_sxm" in capsys.readouterr().err
    path.write_text(path.read_text().replace("h100,", "h1000,"))
    assert imported(tmp_path / "x", "vidur", str(path)) == 2
    assert f"{path}:3: gpu: unknown: 'h1000'; did you mean h100?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("0.041", "-0.041", ":2: time_stats.attn_pre_proj.median: a time is above 0, got -0.041"),
        ("0.006", "nan", ":3: time_stats.add.median: must be a number, got 'nan'"),
        (",512,", ",0,", ":2: num_tokens: must be a whole number of 1 or more, got 0"),
        ("num_tokens", "tokens", ":1: num_tokens: column missing among"),
        ("attn_pre_proj", "qkv", ":1: no Vidur profile: its columns have none of time_stats.attn_pre_proj.median"),
    ],
)
def test_bad_profiles_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, what: str
) -> None:
    path = tmp_path / "mlp.csv"
    text = (VIDUR / "mlp.csv").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert imported(tmp_path / "out", "vidur", str(path)) == 2
    assert re.search(re.escape(f"{path}{what}"), capsys.readouterr().err)


def test_an_unknown_gpu_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(tmp_path, "vidur", str(VIDUR / "mlp.csv"), gpu="h100sxm") == 2
    assert "--gpu: unknown GPU 'h100sxm'; did you mean h100_sxm?" in capsys.readouterr().err


def test_rows_that_were_left_out_still_count_as_lines(tmp_path: Path) -> None:
    """Lines are those of the file, also where rows before them were put aside."""
    text = (VIDUR / "attention.csv").read_text()
    path = tmp_path / "attention.csv"
    path.write_text(text.replace("0.071", "0"))
    with pytest.raises(ScenarioError, match=r"attention.csv:3: time_stats.attn_decode.median: a time is above 0"):
        from calibrate.importing_vidur import tables

        tables([path], "h100_sxm")
