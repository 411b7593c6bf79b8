"""Checking calibrations: on measurements made from a known calibration the errors are those that were put in."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from calibrate import features
from calibrate.__main__ import main
from calibrate.check import points, serving
from calibrate.check.command import checked
from calibrate.data import COLUMNS, DTYPES, OPS, read_kernels
from calibrate.split import held_out
from sim import gpus, models
from sim.cost import BatchShape, Calibration, Prices, Shard, load_calibration, operators
from sim.cost.roofline import RooflinePricer
from sim.scenario import Engine

GPU = gpus.parse("h200_sxm")
MODEL = models.parse("llama-3.1-8b")
CALIBRATION: dict[str, Any] = {
    "name": "known",
    "gpu": "h200_sxm",
    "engine": "vllm",
    "software": "none",
    "source": "invented",
    "licence": "none",
    "date": "2026-01-31",
    "operators": {
        "gemm": {"compute_fraction": 0.8, "bandwidth_fraction": 0.85, "floor_s": 4e-6, "wave_share": 0.3},
        "gemm_fp8": {"compute_fraction": 0.6, "bandwidth_fraction": 0.8, "floor_s": 6e-6, "quantise_fraction": 0.4},
        "attention_decode": {"bandwidth_fraction": 0.9, "floor_s": 12e-6, "block_s": 3e-6, "overlap_p": 2.0},
        "attention_prefill": {"compute_fraction": 0.6, "floor_s": 10e-6, "tiled": True},
        "elementwise": {"bandwidth_fraction": 0.8, "floor_s": 2e-6},
        "all_reduce": {"bandwidth_fraction": 0.7, "floor_s": 5e-6},
        "experts": {"compute_fraction": 0.5, "bandwidth_fraction": 0.9, "floor_s": 15e-6},
    },
    "front_end_s": 0.014,
}
KNOWN = Calibration.model_validate(CALIBRATION)
SHARD = {"heads": 32, "kv_heads": 8, "head_dim": 128}
GRIDS: dict[str, dict[str, list[Any]]] = {
    "gemm": {
        "kernel": ["linear"],
        "dtype": ["bfloat16", "fp8"],
        "m": [1, 4, 16, 32, 64, 65, 128, 512, 1024, 4096, 8192, 16384],
        "n": [4096, 5120],
        "k": [4096, 14336],
    },
    "attention_prefill": {
        "kernel": ["fa"],
        "attn_dtype": ["bfloat16"],
        "kv_dtype": ["bfloat16", "fp8"],
        "batch": [1, 2, 4, 8],
        **{name: [value] for name, value in SHARD.items()},
        "prompt_len": [128, 512, 1000, 2048, 4096, 16384],
        "past_len": [0, 4096],
    },
    "attention_decode": {
        "kernel": ["fa"],
        "attn_dtype": ["bfloat16"],
        "kv_dtype": ["bfloat16", "fp8"],
        "batch": [1, 3, 16, 64],
        **{name: [value] for name, value in SHARD.items()},
        "context_len": [64, 500, 2048, 8192],
    },
    "elementwise": {
        "kernel": ["eager"],
        "dtype": ["bfloat16"],
        "op": list(OPS),
        "tokens": [1, 8, 64, 512, 4096, 5000],
        "width": [4096],
        "bytes": [16384],
    },
    "collectives": {
        "op": ["all_reduce", "all_gather"],
        "kernel": ["custom_graph", "custom_eager"],
        "dtype": ["bfloat16"],
        "num_gpus": [2, 4, 8],
        "elements": [2**p for p in range(8, 28)],
        "bytes": [0],
    },
    "moe": {
        "kernel": ["fused"],
        "dtype": ["bfloat16"],
        "num_tokens": [1, 2, 8, 16, 64, 128, 1024, 4096],
        "hidden": [4096],
        "inter": [14336],
        "topk": [2],
        "num_experts": [8],
        "moe_tp": [1, 2],
        "moe_ep": [1, 2],
        "distribution": ["balanced", "power_law_1.2"],
    },
}


def grid(kind: str) -> pd.DataFrame:
    columns = GRIDS[kind]
    frame = pd.DataFrame(list(product(*columns.values())), columns=list(columns))
    frame.insert(0, "version", "0.24.0")
    frame.insert(0, "backend", "vllm")
    if kind == "elementwise":
        frame["bytes"] = frame["tokens"] * 4 * frame["width"]
    if kind == "collectives":
        frame["bytes"] = 2 * frame["elements"]
    return frame


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels in time with the known calibration, to the last digit; beside the rows that stand, others that do not."""
    root = tmp_path_factory.mktemp("check")
    kernels = root / "data" / "kernels" / "h200_sxm"
    kernels.mkdir(parents=True)
    for kind in GRIDS:
        frame = grid(kind).assign(latency_us=1.0)
        frame["latency_us"] = 1e6 * features.predicted(frame, kind, Prices(GPU, KNOWN))
        if kind == "collectives":  # host-launched ones, and other collectives
            frame.loc[frame["kernel"].str.endswith("eager") | (frame["op"] != "all_reduce"), "latency_us"] *= 9
        if kind == "moe":
            frame.loc[(frame["distribution"] != "balanced") | (frame["moe_ep"] > 1), "latency_us"] *= 9
        slower = frame.assign(kernel="slow", latency_us=2 * frame["latency_us"])  # the quickest kernel is taken
        both = pd.concat([frame if kind == "collectives" else slower, frame, frame.assign(backend="other")])
        both.loc[both["backend"] == "other", "latency_us"] *= 7
        both.to_csv(kernels / f"{kind}.csv", index=False, columns=list(COLUMNS[kind]))
    (root / "known.yaml").write_text(yaml.safe_dump({"schema": 1, **CALIBRATION}))
    return root


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "check")
    return tmp_path / "check" / "data"


def change(folder: Path, kind: str, factor: Any, which: Any) -> None:
    """Multiply the latencies of the rows of a file for which `which` is true."""
    path = folder / "kernels" / "h200_sxm" / f"{kind}.csv"
    frame = pd.read_csv(path)
    frame.loc[which(frame), "latency_us"] *= factor
    frame.to_csv(path, index=False)


def check(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[tuple[str, str], dict[str, Any]]:
    calibration = str(folder.parent / "known.yaml")
    assert main(["check", calibration, "--data", str(folder), "--json", *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["calibration"], found["gpu"], found["engine"]) == ("known", "h200_sxm", "vllm")
    return {(row["operator"], row["range"]): row for row in found["errors"]}


def test_what_is_in_time_with_the_calibration_has_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(folder, capsys)
    assert {operator for operator, _ in found} == {
        *("matrix product bf16", "matrix product fp8", "prefill attention bf16", "prefill attention fp8"),
        *("decode attention bf16", "decode attention fp8", "all-reduce", "mixture bf16", "element-wise"),
    }
    assert max(row["p90_percent"] for row in found.values()) < 0.01


def test_an_error_is_found_where_it_was_put_and_with_its_sign(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "gemm", 1.25, lambda frame: (frame["m"] <= 16) & (frame["dtype"] == "fp8"))
    change(folder, "attention_decode", 0.8, lambda frame: (frame["batch"] == 64) & (frame["context_len"] == 8192))
    found = check(folder, capsys, "--all")
    small = found["matrix product fp8", "m 1-16"]
    assert small["signed_percent"] == pytest.approx(-20.0, abs=0.01)
    assert small["median_percent"] == pytest.approx(20.0, abs=0.01)
    assert small["points"] == 3 * 4
    assert found["matrix product fp8", "m 17-64"]["p90_percent"] < 0.01
    assert found["matrix product bf16", "m 1-16"]["p90_percent"] < 0.01
    large = found["decode attention bf16", "KV over 200 MB"]  # 64 x 8,192 and 16 x 8,192, 64 x 2,048 tokens of 4 KiB
    assert large["points"] == 3
    assert large["signed_percent"] == pytest.approx(0.0, abs=0.01)
    assert large["p90_percent"] == pytest.approx(20.0, abs=0.1)  # of 0, 0 and 25 %, linear between


def test_only_what_is_held_out_counts_unless_all_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "gemm", 3.0, lambda frame: ~held_out(frame, "gemm"))
    operator = "matrix product bf16", "all"
    assert check(folder, capsys)[operator]["p90_percent"] < 0.01
    assert check(folder, capsys, "--all")[operator]["p90_percent"] == pytest.approx(66.67, abs=0.01)


def test_a_folder_of_one_card_has_its_gpu_in_device_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = folder / "kernels" / "h200_sxm"
    gpu = GPU.model_dump() | {"name": "mine", "memory_gb_per_s": 2400.0}
    (card / "device.json").write_text(json.dumps({"gpu": gpu}))
    assert main(["check", str(folder.parent / "known.yaml"), "--data", str(card)]) == 0
    shown = capsys.readouterr().out
    assert "known was measured on h200_sxm, and is applied to mine here" in shown
    assert "known on mine, against vllm" in shown


def test_whole_steps_are_the_sum_of_their_operators(tmp_path: Path) -> None:
    engine = Engine()
    shape = {"layers": 32, "hidden": 4096, **SHARD, "ffn": 14336, "vocab": 128256}
    phases = [("prefill", 2, 1000, 0, 0), ("prefill", 1, 300, 5000, 0), ("decode", 7, 0, 0, 900)]
    phases.append(("mixed", 5, 256, 512, 2000))
    names = ("phase", "batch", "prompt_len", "past_len", "context_len")
    rows = [{"dtype": "bfloat16", **shape, **dict(zip(names, phase, strict=True))} for phase in phases]
    frame = pd.DataFrame(rows).assign(backend="torch", version="2", latency_us=1.0)
    shapes = [
        BatchShape(0, 0, ((1000, 0), (1000, 0)), 2),
        BatchShape(0, 0, ((300, 5000),), 1),
        BatchShape(7, 6300),
        BatchShape(5, 10000, ((256, 512),), 6),
    ]
    prices = Prices(GPU, KNOWN)
    expected = [sum(prices.seconds(each) for each in operators(MODEL, GPU, engine, batch)) for batch in shapes]
    frame["latency_us"] = 1e6 * np.array(expected)
    frame.to_csv(tmp_path / "steps.csv", index=False, columns=list(COLUMNS["steps"]))
    (tmp_path / "device.json").write_text(json.dumps({"gpu": GPU.model_dump()}))
    found, _ = checked(tmp_path, GPU, KNOWN, "vllm")
    assert list(found["range"].unique()) == ["decode", "mixed", "prefill, past", "prefill"]
    np.testing.assert_allclose(found["predicted_s"], found["measured_s"], rtol=1e-4)


def test_time_to_first_token_and_between_tokens(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    steps.mkdir()
    pricer = RooflinePricer(MODEL, GPU, Engine(weight_dtype="fp8"), KNOWN)
    one = 0.014 + pricer.mean(0, 0, [(3000, 0)], 1)
    two = 0.014 + pricer.mean(0, 0, [(8192, 0)], 0) + pricer.mean(0, 0, [(1808, 8192)], 1)
    between = pricer.mean(100, 100 * 2000, [], 100)
    (steps / "dynamo_h200_prefill.csv").write_text(f"isl,ttft_ms\n3000,{one * 1e3}\n10000,{two * 1e3}\n")
    header = "mean_context_tokens,itl_ms,batch_from_throughput"
    (steps / "dynamo_h200_decode.csv").write_text(f"{header}\n2000,{between * 2e3},99.7\n")
    found = serving.dynamo(tmp_path, GPU, KNOWN, "vllm")
    ratio = (found["predicted_s"] / found["measured_s"]).tolist()
    assert ratio == pytest.approx([1.0, 1.0, 0.5])
    slow = KNOWN.model_copy(update={"host_s": 0.1})
    assert serving.dynamo(tmp_path, GPU, slow, "vllm")["predicted_s"].max() > 0.1
    said = serving.alone(tmp_path, GPU, slow, "vllm")
    assert "time between tokens -50.0 %" in said
    assert serving.dynamo(tmp_path, gpus.parse("h100_sxm"), KNOWN, "vllm").empty
    assert serving.dynamo(tmp_path, GPU, KNOWN, "trtllm").empty


@pytest.mark.parametrize("tp", [1, 4])
def test_features_are_the_simulators_own_operators(tp: int) -> None:
    """One launch each, whatever the calibration."""
    engine = Engine(weight_dtype="fp8", kv_cache_dtype="fp8", tensor_parallel_size=tp)
    shard = Shard.of(MODEL, GPU, engine)
    ours = {each.name: each for each in shard.row_operators(48)}
    ours |= {"decode": shard.decode_attention(6, 6 * 700), "prefill": shard.prefill_attention([(900, 300)] * 3)}
    heads = {"heads": [32 // tp], "kv_heads": [8 // tp], "head_dim": [128], "kv_dtype": ["fp8"]}
    gemm = pd.DataFrame({"dtype": ["fp8"], "m": [48], "n": [6144 // tp], "k": [4096]})
    decode = pd.DataFrame({**heads, "batch": [6], "context_len": [700]})
    prefill = pd.DataFrame({**heads, "batch": [3], "prompt_len": [900], "past_len": [300]})
    size = 48 * 4096 * 2
    pairs = [
        (features.gemm_operator(gemm), ours["qkv"]),
        (features.decode_operator(decode), ours["decode"]),
        (features.prefill_operator(prefill), ours["prefill"]),
    ]
    if tp > 1:
        reduce = pd.DataFrame({"num_gpus": [tp], "bytes": [size]})
        pairs.append((features.all_reduce_operator(reduce), ours["all_reduce"]))
    for found, expected in pairs:
        for name in ("flops", "bytes", "comm_bytes", "dtype", "narrow", "kind"):
            assert getattr(found, name) == getattr(expected, name), (expected.name, name)
        assert tuple(np.ravel(value)[0] for value in found.dims) == expected.dims


def test_rows_of_other_engines_kernels_and_traps_are_left_out(folder: Path) -> None:
    path = folder / "kernels" / "h200_sxm"
    gemm = features.chosen(read_kernels(path / "gemm.csv", "gemm"), "gemm", "vllm")
    assert set(gemm["backend"]) == {"vllm"} and set(gemm["kernel"]) == {"linear"}
    assert len(gemm) == 12 * 2 * 2 * 2
    wide = gemm.iloc[:4].assign(n=[1024, 2048, 256, 4096], backend=["vllm", "vllm", "vllm", "sglang"])
    assert set(features.chosen(wide, "gemm", "vllm")["n"]) == {4096}  # A100: SGLang's for vLLM's
    assert set(features.chosen(wide, "gemm", "sglang")["n"]) == {4096}
    assert set(features.chosen(wide[:3], "gemm", "vllm")["n"]) == {1024, 2048}
    assert set(features.chosen(wide[:3], "gemm", "vllm", wide=True)["n"]) == {256, 1024, 2048}
    moe = features.chosen(read_kernels(path / "moe.csv", "moe"), "moe", "vllm")
    assert set(moe["distribution"]) == {"balanced"} and set(moe["moe_ep"]) == {1}
    collectives = features.chosen(read_kernels(path / "collectives.csv", "collectives"), "collectives", "vllm")
    assert set(collectives["op"]) == {"all_reduce"} and set(collectives["kernel"]) == {"custom_graph"}
    with pytest.raises(ValueError, match="backend: no rows of 'vlm'; did you mean vllm"):
        features.backend_of(gemm.assign(backend=["vllm", "other"] * (len(gemm) // 2)), "vlm")


def test_the_launch_that_tensorrt_llm_leaves_out_is_added_to_its_prices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "card" / "gemm.csv"
    path.parent.mkdir()
    static = {**CALIBRATION, "engine": "trtllm"}
    static["operators"] = {**CALIBRATION["operators"], "gemm_fp8": {"compute_fraction": 0.6, "floor_s": 4e-6}}
    calibration = tmp_path / "static.yaml"
    calibration.write_text(yaml.safe_dump({"schema": 1, **static}))
    frame = grid("gemm").assign(backend="trtllm", latency_us=1.0)
    frame = frame[frame["m"] <= 64]
    found = 1e6 * features.predicted(frame, "gemm", Prices(GPU, load_calibration(calibration)))
    narrow = (frame["dtype"] == "fp8").to_numpy()
    gap = found[~narrow].min() + 9.0 - found[narrow].min()  # so that the least of each are 9 us apart
    frame["latency_us"] = np.where(narrow, found + gap, found)
    frame.to_csv(path, index=False, columns=list(COLUMNS["gemm"]))
    assert main(["check", str(calibration), "--data", str(path.parent), "--gpu", "h200_sxm", "--json", "--all"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert any("9.0 us are added to its prices here" in note for note in said["notes"])
    errors = {row["operator"]: row["signed_percent"] for row in said["errors"] if row["range"] == "all"}
    assert errors["matrix product bf16"] == pytest.approx(0.0, abs=0.01)
    by_hand = np.median(100 * ((found[narrow] + 9.0) / (found[narrow] + gap) - 1))
    assert errors["matrix product fp8"] == pytest.approx(by_hand, abs=0.01)


def test_ranges_meet_without_a_gap() -> None:
    kind = points.KINDS["gemm"]
    assert len(kind.labels) == len(kind.edges) + 1
    frame = pd.DataFrame({"m": [1, 16, 17, 64, 65, 4096, 4097], "dtype": "bfloat16", "latency_us": 1.0})
    found = points._points(frame, "gemm", np.ones(7))["range"].tolist()
    assert found == ["m 1-16"] * 2 + ["m 17-64"] * 2 + ["m 65-512", "m 513-4096", "m over 4096"]
    assert {each for each in DTYPES if each in features.NARROW} == {"fp8"}


def test_files_are_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("elementwise", "moe", "collectives", "attention_prefill"):  # drawing takes its time
        (folder / "kernels" / "h200_sxm" / f"{kind}.csv").unlink()
    out = tmp_path / "made" / "here"
    rows = check(folder, capsys, "--out", str(out))
    table = pd.read_csv(out / "check.csv")
    assert len(table) == len(rows) and set(table["operator"]) == {operator for operator, _ in rows}
    every = pd.read_csv(out / "points.csv.gz")
    assert len(every) == sum(row["points"] for (_, label), row in rows.items() if label == "all")
    assert (out / "check.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace(",fp8,64,", ",fp8,x,", 1), "gemm.csv:{}: m: must be a number, got 'x'"),
        (lambda text: text.replace(",fp8,64,", ",fp9,64,", 1), "gemm.csv:{}: dtype: unknown: 'fp9'; did you mean fp8?"),
        (lambda text: text.replace(",m,", ",rows,", 1), "gemm.csv:1: m: column missing"),
        (lambda text: text.replace("vllm", "a").replace("other", "b"), "gemm.csv: backend: no rows of 'vllm'"),
    ],
)
def test_bad_input_is_one_line_with_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    path = folder / "kernels" / "h200_sxm" / "gemm.csv"
    text = path.read_text()
    line = 1 + next(i for i, row in enumerate(text.splitlines()) if ",fp8,64," in row)
    path.write_text(spoil(text))
    assert main(["check", str(folder.parent / "known.yaml"), "--data", str(folder)]) == 2
    said = capsys.readouterr().err
    assert message.format(line) in said and said.count("\n") == 1


def test_arguments_that_lead_nowhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = str(folder.parent / "known.yaml")
    for arguments, words in (
        (["idael", "--data", str(folder)], "unknown calibration 'idael'; did you mean ideal"),
        (["ideal", "--data", str(folder)], "--gpu: missing: ideal is not of a known GPU; say which with --gpu: h100"),
        ([known, "--data", str(folder / "no")], "--data: "),
        ([known, "--data", str(folder), "--gpu", "h20_sxm"], "--gpu: unknown GPU 'h20_sxm'; did you mean h200_sxm"),
        ([known, "--data", str(folder), "--gpu", "b200"], "unknown GPU 'b200_sxm'; "),
        ([known, "--data", str(folder.parent)], "has no gemm.csv or gemm.csv.gz"),
        ([known, "--data", str(folder), "--out", known], "--out: "),
    ):
        assert main(["check", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
