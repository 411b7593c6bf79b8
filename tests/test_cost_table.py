"""Tables of measured kernels: what they say between the points, beyond them, and where they say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from calibrate import features, tables
from calibrate.__main__ import main
from calibrate.data import COLUMNS
from sim import gpus, models
from sim.cost import Prices, Shard, load_calibration
from sim.cost.operators import Operator
from sim.cost.operators import gemm as counts
from sim.cost.roofline import RooflinePricer
from sim.cost.table import load
from sim.errors import ScenarioError
from sim.scenario import Engine

GPU = gpus.parse("h100_sxm")
MODEL = models.parse("llama-3.1-8b")
HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}
CALIBRATION = """\
schema: 1
name: tabled
gpu: h100_sxm
engine: vllm
software: none
source: invented
licence: none
date: 2026-01-31
operators:
  gemm: {floor_s: 1.0}
  attention_decode: {floor_s: 1.0}
  attention_prefill: {floor_s: 1.0}
"""
M, BATCHES, CONTEXTS, PROMPTS = (1, 8, 64, 512, 4096), (1, 8, 64), (64, 512, 4096), (64, 512, 4096)


def power(m: Any) -> Any:
    """Microseconds of the products of the table; between its points straight in the logarithms."""
    return 100.0 * np.asarray(m) ** 0.5


def line(batch: Any, context: Any) -> Any:
    """Microseconds of decode attention: linear in the tokens read. 4 KiB a token at 3.35 TB/s are 1.2 ns."""
    return 20.0 + 0.002 * np.asarray(batch) * np.asarray(context)


def rise(batch: Any, prompt: Any) -> Any:
    return 50.0 * np.asarray(batch) * np.asarray(prompt) ** 1.5 / 512


def made(folder: Path, slow: float = 1.0) -> Path:
    """A folder of measurements; the product of 64 rows as often slower."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {"backend": "vllm", "version": "1", "kernel": "k", "dtype": "bfloat16", "attn_dtype": "bfloat16"}
    common["kv_dtype"] = "bfloat16"
    gemm = [{"m": m, "k": 4096, "n": 6144, "latency_us": power(m) * (slow if m == 64 else 1.0)} for m in M]
    decode = [{"batch": b, "context_len": c, "latency_us": line(b, c)} for b in BATCHES for c in CONTEXTS]
    prefill = [  # nothing is read of those with a past
        {"batch": b, "prompt_len": p, "past_len": past, "latency_us": rise(b, p) * (0.5 if past else 1.0)}
        for b in BATCHES
        for p in PROMPTS
        for past in (0, 4096)
    ]
    for kind, rows in (("gemm", gemm), ("attention_decode", decode), ("attention_prefill", prefill)):
        frame = pd.DataFrame([{**common, **HEADS, **row} for row in rows])
        frame.to_csv(folder / f"{kind}.csv", index=False, columns=list(COLUMNS[kind]))
    return folder


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    """A calibration whose forms take a second a launch, and a table beside it."""
    tables.build("h100_sxm", "vllm", made(tmp_path / "data"), tmp_path / "h100.npz")
    path = tmp_path / "tabled.yaml"
    path.write_text(CALIBRATION + "tables: h100.npz\n")
    return path


@pytest.fixture
def prices(calibration: Path) -> Prices:
    return Prices(GPU, load_calibration(calibration))


@pytest.fixture
def shard() -> Shard:
    return Shard.of(MODEL, GPU, Engine())


def product(m: Any, k: int = 4096, n: int = 6144, narrow: bool = False) -> Operator:
    return Operator("qkv", "gemm", *counts(m, k, n), count=3, narrow=narrow, dims=(m, k, n))


def test_products_are_straight_in_the_logarithms_and_go_on_at_the_last_rate(prices: Prices) -> None:
    m = np.array([1, 8, 20, 64, 300, 4096, 40960])
    expected = 3e-6 * np.append(power(m[:-1]), 10 * power(4096))
    np.testing.assert_allclose(prices.seconds(product(m)), expected, rtol=1e-9)
    assert prices.seconds(product(300)) == pytest.approx(3e-6 * power(300))
    assert prices.seconds(product(np.array([0]))) == pytest.approx(3e-6 * power(1))


@pytest.mark.parametrize("operator", [product(20, k=4095), product(20, n=6145), product(20, narrow=True)])
def test_what_the_table_lacks_is_left_to_the_forms(prices: Prices, operator: Operator) -> None:
    assert prices.seconds(operator) > 3.0
    passes = Operator("norm", "elementwise", 0, 100.0)
    assert prices.seconds(passes) < 1e-6  # that form is ideal here


def test_no_price_is_below_the_physical_floor(prices: Prices) -> None:
    huge = product(np.array([10**7]))
    fast = prices.measured.seconds(huge)  # type: ignore[union-attr]
    assert fast is not None
    ideal = huge.flops / (GPU.bf16_tflops * 1e12)
    assert prices.seconds(huge) == pytest.approx(3 * max(fast.item(), ideal.item()))
    wrong = product(np.array([512]))
    prices.measured._gemms[4096, 6144, 0].log_seconds[:] -= 20.0  # type: ignore[union-attr]  # faster than possible
    assert prices.seconds(wrong) == pytest.approx(3 * wrong.bytes / (GPU.memory_gb_per_s * 1e9), rel=0.5)
    assert prices.seconds(wrong) >= 3 * wrong.flops / (GPU.bf16_tflops * 1e12)


def test_decode_is_linear_within_the_grid(prices: Prices, shard: Shard) -> None:
    for n in (1, 5, 8, 33, 64):
        contexts = n * np.array([64, 100, 1000, 4096])
        found = prices.seconds(shard.decode_attention(n, contexts))
        np.testing.assert_allclose(found, 32e-6 * line(n, contexts / n), rtol=1e-9)
        scalar = prices.seconds(shard.decode_attention(n, n * 1000))
        assert scalar == pytest.approx(32e-6 * line(n, 1000))
    assert prices.seconds(shard.decode_attention(3, 3)) == pytest.approx(32e-6 * line(3, 64))  # the least measured


def test_decode_beyond_the_grid_goes_on_at_the_mean_bandwidth_of_the_largest(prices: Prices, shard: Shard) -> None:
    rate = 64 * 4096 / (line(64, 4096) * 1e-6)  # tokens a second
    found = prices.seconds(shard.decode_attention(64, 64 * 10_000)) / 32
    assert found == pytest.approx(line(64, 4096) * 1e-6 + 64 * (10_000 - 4096) / rate)
    assert found > line(64, 10_000) * 1e-6  # the slope alone is faster
    assert prices.seconds(shard.decode_attention(128, 128 * 512)) == pytest.approx(2 * 32e-6 * line(64, 512))


def test_prefill_of_like_prompts_comes_from_the_table_and_no_other(prices: Prices, shard: Shard) -> None:
    for prompts in ([(512, 0)], [(64, 0)] * 8, [(4096, 0)] * 64):
        found = prices.seconds(shard.prefill_attention(prompts))
        assert found == pytest.approx(32e-6 * rise(len(prompts), prompts[0][0])), prompts
    between = prices.seconds(shard.prefill_attention([(1500, 0)]))
    assert between == pytest.approx(32e-6 * rise(1, 1500), rel=0.05)
    far = prices.seconds(shard.prefill_attention([(8192, 0)]))
    assert far == pytest.approx(32e-6 * rise(1, 4096) * 4)
    for prompts in ([(512, 1)], [(512, 4096)], [(512, 0), (513, 0)], [(550, 0), (512, 0)], [(512, 0), (64, 0)]):
        assert prices.seconds(shard.prefill_attention(prompts)) > 32.0, prompts


def test_heads_of_other_shapes_are_not_taken_for_those_of_the_table(prices: Prices) -> None:
    for tp, cache in ((2, "auto"), (1, "fp8")):
        other = Shard.of(MODEL, GPU, Engine(tensor_parallel_size=tp, kv_cache_dtype=cache))  # type: ignore[arg-type]
        assert prices.seconds(other.decode_attention(8, 8 * 512)) > 32.0
        assert prices.seconds(other.prefill_attention([(512, 0)])) > 32.0


def test_arrays_of_shapes_are_priced_row_by_row(prices: Prices) -> None:
    """As `check` asks: each row has widths of its own; NaN where the table has none, which is the form's."""
    gemm = pd.DataFrame({"dtype": "bfloat16", "m": [8, 8, 64], "n": [6144, 6145, 6144], "k": 4096})
    found = prices.seconds(features.gemm_operator(gemm))
    np.testing.assert_allclose(found[[0, 2]], 1e-6 * power([8, 64]))
    assert found[1] > 1.0
    shape = {"heads": [32, 16, 32], "kv_heads": [8, 8, 8], "head_dim": 128, "kv_dtype": "bfloat16", "batch": [5, 5, 64]}
    decode = pd.DataFrame({**shape, "context_len": [512, 512, 4096]})
    found = prices.seconds(features.decode_operator(decode))
    np.testing.assert_allclose(found[[0, 2]], 1e-6 * line([5, 64], [512, 4096]))
    assert found[1] > 1.0
    prefill = pd.DataFrame({**shape, "prompt_len": [512, 512, 4096], "past_len": [0, 0, 0]}).assign(batch=[1, 1, 64])
    found = prices.seconds(features.prefill_operator(prefill))
    np.testing.assert_allclose(found[[0, 2]], 1e-6 * rise([1, 64], [512, 4096]))
    assert found[1] > 1.0


def test_steps_of_a_run_are_priced_by_it(calibration: Path) -> None:
    pricer = RooflinePricer(MODEL, GPU, Engine(), load_calibration(calibration))
    for n, context in ((1, 100), (33, 33 * 777), (64, 64 * 9000)):
        step = [each for each in pricer.operators(n, context, (), n) if each.kind == "attention_decode"]
        exact = pricer.prices.seconds(step[0])
        assert pricer.seconds(step[0]) == pytest.approx(exact, rel=2e-3)
        rest = sum(pricer.seconds(each) for each in pricer.operators(n, context, (), n))
        assert pricer.mean(n, context, (), n) == pytest.approx(rest)
    prompt = pricer.operators(0, 0, [(512, 0)], 1)
    assert pricer.mean(0, 0, [(512, 0)], 1) == pytest.approx(sum(pricer.seconds(each) for each in prompt))
    qkv = next(each for each in prompt if each.name == "qkv")
    assert pricer.seconds(qkv) == pytest.approx(32e-6 * power(512))


def test_a_table_holds_for_the_gpu_of_its_calibration(calibration: Path) -> None:
    found = load_calibration(calibration)
    assert found.tables == str(calibration.parent / "h100.npz") and not found.ideal
    assert Prices(gpus.parse("h200_sxm"), found).measured is None
    assert Prices(GPU, found).measured is load(calibration.parent / "h100.npz")  # read once


def test_a_disturbed_product_is_left_out_and_a_step_is_not(tmp_path: Path) -> None:
    data = made(tmp_path / "data", slow=4.0)
    assert tables.build("h100_sxm", "vllm", data, tmp_path / "a.npz")["gemm"] == (1, len(M) - 1, 1)
    frame = pd.read_csv(data / "gemm.csv")
    frame["latency_us"] = [100.0, 100.0, 900.0, 900.0, 1000.0]  # an edge: slower than the line, not than the next
    frame.to_csv(data / "gemm.csv", index=False)
    assert tables.build("h100_sxm", "vllm", data, tmp_path / "a.npz")["gemm"] == (1, len(M), 0)


def test_the_command_writes_a_calibration_with_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, base, out = made(tmp_path / "data"), tmp_path / "base.yaml", tmp_path / "made" / "own.npz"
    base.write_text(CALIBRATION.replace("operators:", "tables: gone.npz\noperators:"))
    words = ["--gpu", "h100_sxm", "--engine", "vllm", "--data", str(data), "--out", str(out), "--with", str(base)]
    assert main(["tables", *words]) == 0
    assert "gemm" in capsys.readouterr().out
    found = load_calibration(out.with_suffix(".yaml"))
    assert found.tables == str(out) and found.name == "tabled"
    assert yaml.safe_load(out.with_suffix(".yaml").read_text())["tables"] == "own.npz"
    assert main(["check", str(out.with_suffix(".yaml")), "--data", str(data), "--all"]) == 0
    shown = capsys.readouterr().out
    assert "matrix product bf16" in shown
    assert main(["tables", *words, "--for-check"]) == 0
    kept = sum(map(len, load(out)._decodes[32, 8, 128, 0].tokens))
    assert 0 < kept < len(BATCHES) * len(CONTEXTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x.csv"], "the name must end in .npz"),
        (["--with", "ideal"], "--with: ideal has no file"),
        (["--with", "nothing"], "unknown calibration 'nothing'"),
        (["--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    data = made(tmp_path / "data")
    given = ["--gpu", "h100_sxm", "--engine", "vllm", "--data", str(data), "--out", str(tmp_path / "x.npz")]
    assert main(["tables", *given, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def spoiled(path: Path, **changes: Any) -> None:
    with np.load(path) as file:
        arrays = {**dict(file), **changes}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema: must be 1"),
        ({"gemm_seconds": np.full(len(M), -1.0)}, "gemm: times and sizes must be above 0"),
        ({"gemm_seconds": np.full(len(M), np.nan)}, "gemm: times and sizes must be above 0"),
        ({"gemm_starts": np.array([0, 2])}, "gemm_starts: does not divide the points"),
        ({"attention_decode_shapes": np.ones((1, 3))}, "attention_decode: arrays of other sizes"),
        ({"gemm_points": np.array([["a"]] * len(M), dtype=object)}, "not a file of"),
    ],
)
def test_a_bad_table_is_refused_where_the_calibration_names_it(
    calibration: Path, changes: dict[str, Any], words: str
) -> None:
    spoiled(calibration.parent / "h100.npz", **changes)
    line = len(CALIBRATION.splitlines()) + 1
    with pytest.raises(ScenarioError) as caught:
        load_calibration(calibration)
    assert str(caught.value).startswith(f"{calibration}:{line}: tables: ") and words in str(caught.value)


def test_a_missing_table_is_refused(calibration: Path) -> None:
    (calibration.parent / "h100.npz").unlink()
    with pytest.raises(ScenarioError, match=r"tabled\.yaml:13: tables: .*h100\.npz: No such file"):
        load_calibration(calibration)
    (calibration.parent / "h100.npz").write_text("text")
    with pytest.raises(ScenarioError, match=r"tabled\.yaml:13: tables: .*not a file of `python -m calibrate tables`"):
        load_calibration(calibration)
