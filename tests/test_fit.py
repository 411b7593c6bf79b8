"""Fits: what measurements were made from comes back, what they cannot tell is said, same data give same bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from calibrate.__main__ import main
from calibrate.data import COLUMNS, read_kernels
from calibrate.features import (
    all_reduce_operator,
    decode_operator,
    expert_operators,
    gemm_operator,
    prefill_operator,
)
from calibrate.fit import solve
from calibrate.fit.host import fit_host, kernels
from calibrate.fit.kinds import KINDS, fit_kind, quickest, read, select
from calibrate.fit.points import machine
from calibrate.split import held_out
from sim import gpus
from sim.cost import BatchShape, Calibration, Efficiency, Shard, load_calibration, operators, packaged
from sim.cost.calibration import FOLDER
from sim.cost.forms import AllReduce, DecodeAttention, Experts, Gemm, PrefillAttention
from sim.errors import ScenarioError
from sim.models import parse as model
from sim.scenario import Engine

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "measurements"
H100 = gpus.parse("h100_sxm")
NAMES = [f"{gpu}-{engine}" for gpu in gpus.names() for engine in ("vllm", "trtllm")]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the measurements in {DATA}")

GEMM = Gemm(
    compute_fraction=0.8, bandwidth_fraction=0.7, floor_s=4e-6, overlap_p=2.5, wave_share=0.5, small_tile_penalty=0.1
)
DECODE = DecodeAttention(
    bandwidth_fraction=0.75, floor_s=1.1e-5, block_s=3e-6, overlap_p=2.0, chain_s_per_ktoken=2e-6, max_splits=4
)
PREFILL = PrefillAttention(
    tiled=True, compute_fraction=0.6, bandwidth_fraction=0.4, floor_s=9e-6, overlap_p=1.5, occupancy=0.6
)
EXPERTS = Experts(compute_fraction=0.6, bandwidth_fraction=0.8, floor_s=1e-5, overlap_p=2.0)
REDUCE = {  # one shot up to about a megabyte, then the ring
    "one_shot": {"floor_s": 4e-6, "bandwidth_fraction": 0.5},
    "ring": {"floor_s": 1.5e-5, "bandwidth_fraction": 0.8},
}
SIZES = [1, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 3072, 4096, 8192]


def grid(**columns: list[Any]) -> pd.DataFrame:
    """All combinations."""
    return pd.MultiIndex.from_product(list(columns.values()), names=list(columns)).to_frame(index=False)


def timed(frame: pd.DataFrame, seconds: Any, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    return frame.assign(latency_us=1e6 * seconds * np.exp(noise * rng.standard_normal(len(frame))))


def gemms(form: Gemm, noise: float = 0.02, dtype: str = "bfloat16") -> pd.DataFrame:
    frame = grid(m=SIZES, n=[1024, 4096, 6144, 28672], k=[1024, 4096, 8192]).assign(dtype=dtype)
    seconds = form.seconds(gemm_operator(frame), machine(H100, "fp8" if dtype == "fp8" else "bf16"))
    return timed(frame, seconds, noise, np.random.default_rng(1))


def decodes(form: DecodeAttention, noise: float = 0.02) -> pd.DataFrame:
    frame = grid(batch=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512], context_len=[64, 128, 256, 512, 1024, 4096, 16384])
    frame = frame.merge(pd.DataFrame({"heads": [32, 8, 16], "kv_heads": [8, 2, 1]}), how="cross")
    frame = frame.assign(head_dim=128, attn_dtype="bfloat16", kv_dtype="bfloat16")
    return timed(frame, form.seconds(decode_operator(frame), machine(H100)), noise, np.random.default_rng(2))


def prefills(form: PrefillAttention, noise: float = 0.02) -> pd.DataFrame:
    frame = grid(batch=[1, 2, 4, 8], prompt_len=[64, 128, 256, 512, 1024, 2048, 3072, 4096, 8192, 16384], past_len=[0])
    frame = frame.merge(pd.DataFrame({"heads": [32, 8, 16], "kv_heads": [8, 2, 1]}), how="cross")
    frame = frame.assign(head_dim=128, attn_dtype="bfloat16", kv_dtype="bfloat16")
    return timed(frame, form.seconds(prefill_operator(frame), machine(H100)), noise, np.random.default_rng(3))


def reductions(noise: float = 0.01) -> pd.DataFrame:
    frame = grid(num_gpus=[4], elements=[2**power for power in range(7, 30)])
    frame = frame.assign(op="all_reduce", dtype="bfloat16", bytes=2 * frame["elements"])
    form = AllReduce(by_gpus={4: REDUCE})  # type: ignore[dict-item]
    seconds = form.seconds(all_reduce_operator(frame), machine(H100))
    graph = timed(frame.assign(kernel="custom_graph"), seconds, noise, np.random.default_rng(4))
    eager = graph.assign(kernel="custom_eager", latency_us=graph["latency_us"] + 20.0)  # with the host's launch
    return pd.concat((eager, graph))


def mixtures(noise: float = 0.02) -> pd.DataFrame:
    frame = grid(num_tokens=[*SIZES, 1536, 6144, 12288, 16384], moe_tp=[1, 2, 4], moe_ep=[1])
    frame = frame.merge(pd.DataFrame({"hidden": [4096, 2048], "inter": [14336, 1024], "topk": [2, 8]}), how="cross")
    frame = frame.assign(num_experts=4 * frame["topk"] ** 2 // 2, distribution="balanced", dtype="bfloat16")
    up, down, between = expert_operators(frame)
    gpu = machine(H100)
    passes = Efficiency(bandwidth_fraction=0.88, floor_s=2e-6).seconds(between, gpu)
    return timed(frame, EXPERTS.seconds(up, gpu) + EXPERTS.seconds(down, gpu) + passes, noise, np.random.default_rng(5))


def write(folder: Path, backend: str = "vllm", **frames: pd.DataFrame) -> Path:
    """A folder as `calibrate measure` writes it: one card's files."""
    folder.mkdir(exist_ok=True)
    for kind, frame in frames.items():
        words = {name: "x" for name in COLUMNS[kind] if name not in frame}
        frame.assign(**{**words, "backend": backend, "version": "1"})[list(COLUMNS[kind])].to_csv(
            folder / f"{kind}.csv", index=False
        )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("measured"),
        gemm=gemms(GEMM),
        attention_decode=decodes(DECODE),
        attention_prefill=prefills(PREFILL),
        collectives=reductions(),
        moe=mixtures(),
    )


def command(folder: Path, out: Path, *more: str) -> int:
    words = ["fit", "--gpu", "h100_sxm", "--data", str(folder), "--out", str(out), "--date", "2026-11-25", *more]
    return main(words)


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    out = tmp_path_factory.mktemp("out") / "h100.yaml"
    assert command(folder, out) == 0
    return load_calibration(out)


def near(value: float, expected: float, share: float) -> bool:
    return value == pytest.approx(expected, rel=share)


def test_known_coefficients_come_back(found: Calibration) -> None:
    gemm, decode, prefill, experts = (
        getattr(found.operators, kind) for kind in ("gemm", "attention_decode", "attention_prefill", "experts")
    )
    for name, share in (("compute_fraction", 0.02), ("bandwidth_fraction", 0.02), ("floor_s", 0.05)):
        for form, known in ((gemm, GEMM), (prefill, PREFILL), (experts, EXPERTS)):
            assert near(getattr(form, name), getattr(known, name), share), (form, name)
    assert near(gemm.overlap_p, 2.5, 0.1) and near(gemm.wave_share, 0.5, 0.1) and near(prefill.occupancy, 0.6, 0.05)
    assert near(gemm.small_tile_penalty, 0.1, 0.3)
    assert near(decode.bandwidth_fraction, 0.75, 0.02) and near(decode.floor_s, 1.1e-5, 0.02)
    assert near(decode.block_s, 3e-6, 0.1) and near(decode.overlap_p, 2.0, 0.15)
    assert near(decode.chain_s_per_ktoken / decode.max_splits, 5e-7, 0.1)  # where splits are many, the ratio alone
    group = found.operators.all_reduce.by_gpus[4]
    for name in ("one_shot", "ring"):
        segment = getattr(group, name)
        assert near(segment.bandwidth_fraction, REDUCE[name]["bandwidth_fraction"], 0.1), segment
        assert near(segment.floor_s, REDUCE[name]["floor_s"], 0.15), segment


def test_errors_are_those_of_what_was_held_out(found: Calibration, folder: Path) -> None:
    """2 % of noise leave 1.35 % in the median; and no other points than those held out are counted."""
    for kind in ("gemm", "attention_decode", "attention_prefill", "experts"):
        errors = found.errors[kind]
        assert errors["held_out"] and errors["median_percent"] < 2.0 and errors["p90_percent"] < 4.5, (kind, errors)
        assert 0.015 < errors["log_spread"] < 0.025
    frame = read_kernels(folder / "gemm.csv", "gemm")
    assert found.errors["gemm"]["points"] == held_out(frame, "gemm").sum()
    assert found.errors["gemm"]["fitted_points"] == (~held_out(frame, "gemm")).sum()


def test_what_was_held_out_does_not_move_the_fit(folder: Path, found: Calibration, tmp_path: Path) -> None:
    frame = read_kernels(folder / "gemm.csv", "gemm")
    frame.loc[held_out(frame, "gemm"), "latency_us"] *= 3.0
    write(tmp_path / "spoilt", gemm=frame)
    assert command(tmp_path / "spoilt", tmp_path / "out.yaml") == 0
    spoilt = load_calibration(tmp_path / "out.yaml")
    assert spoilt.operators.gemm == found.operators.gemm
    assert spoilt.errors["gemm"]["median_percent"] > 60


def test_the_file_says_where_it_is_from(found: Calibration, folder: Path) -> None:
    assert (found.name, found.gpu, found.engine, found.date) == ("h100_sxm-vllm", "h100_sxm", "vllm", "2026-11-25")
    assert found.software["gemm"] == "vllm 1"  # type: ignore[index]
    assert found.ranges.model_dump() == {
        "gemm_rows": [1, 8192],
        "decode_sequences": [1, 512],
        "decode_context_tokens": [1, 512 * 16384],
        "prompt_tokens": [64, 16384],
    }


def test_what_was_not_measured_stays_ideal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "few", gemm=gemms(GEMM))
    assert command(tmp_path / "few", tmp_path / "out.yaml") == 0
    found = load_calibration(tmp_path / "out.yaml")
    assert found.operators.attention_decode == DecodeAttention() and found.operators.gemm != Gemm()
    assert "attention_decode: not measured, left at its ideal" in capsys.readouterr().out


def test_same_data_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name, jobs in (("a", "1"), ("b", "1"), ("c", "2")):
        assert command(folder, tmp_path / name, "--jobs", jobs) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    twin = write(tmp_path / "elsewhere", **{path.stem: pd.read_csv(path) for path in folder.glob("*.csv")})
    assert command(twin, tmp_path / "d", "--source", f"measured kernels in {folder.name}/") == 0
    a, d = (yaml.safe_load((tmp_path / name).read_text()) for name in "ad")
    for each in (a, d):
        each["errors"]["fit"].pop("key")  # the source is an option
    assert a == d


def test_coefficients_have_four_digits(found: Calibration) -> None:
    for kind in ("gemm", "attention_decode"):
        for value in getattr(found.operators, kind).model_dump().values():
            assert value is None or isinstance(value, dict) or float(f"{value:.4g}") == value


def test_the_same_is_not_fitted_twice(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key covers data and options; a file that somebody else wrote has none."""
    copy, out = write(tmp_path / "data", gemm=gemms(GEMM)), tmp_path / "out.yaml"

    def fitted(*more: str) -> bool:
        assert command(copy, out, *more) == 0
        return "fitted to these data already" not in capsys.readouterr().out

    assert fitted()
    assert not fitted()
    assert fitted("--force")
    assert fitted("--licence", "MIT")
    assert not fitted("--licence", "MIT")
    write(copy, gemm=gemms(GEMM, noise=0.03))
    assert fitted("--licence", "MIT")


def test_a_changed_file_shows_what_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.yaml"
    for fraction in (0.8, 0.4):
        write(tmp_path / "data", gemm=gemms(GEMM.model_copy(update={"compute_fraction": fraction})))
        assert command(tmp_path / "data", out) == 0
    row = next(line for line in capsys.readouterr().out.splitlines()[::-1] if "70B bf16 TP4, prefill 8192" in line)
    *_, old, new, measured = row.split()
    assert 1.5 < float(new) / float(old) < 2.1 and measured == "-"


def test_a_number_that_ends_at_a_bound_is_reported_and_not_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Products that know no waves and reach all of the bandwidth: both are set to their neutral values, by name."""
    write(tmp_path / "data", gemm=gemms(Gemm(compute_fraction=0.7, floor_s=4e-6, overlap_p=2.0)))
    assert command(tmp_path / "data", tmp_path / "out.yaml") == 0
    printed = capsys.readouterr().out
    form = load_calibration(tmp_path / "out.yaml").operators.gemm
    assert "warning: gemm: wave_share ended at its lower bound 0; set to 0\n" in printed
    assert "warning: gemm: bandwidth_fraction ended at its upper bound 1; set to 1\n" in printed
    assert form.wave_share == 0 and form.bandwidth_fraction == 1 and near(form.compute_fraction, 0.7, 0.02)


def test_a_number_at_a_bound_is_replaced_and_the_rest_fitted_anew() -> None:
    x = np.linspace(1, 10, 40)
    slope, start = (
        solve.Number("slope", 0.1, 2.0, (1.0,), None, 5.0),
        solve.Number("start", 0.01, 100.0, (1.0,), 0.0, 0.0),
    )

    def predict(values: Any) -> Any:
        return values["slope"] * x + values["start"]

    fitted = solve.solve((slope, start), predict, 3.0 * x, "line")
    assert fitted.values["slope"] == 5.0  # what stands for a slope beyond its bound, and
    assert fitted.values["start"] == 0.0  # nothing is left for the start
    assert [line.split()[0] for line in fitted.bounds] == ["slope", "start"]


def test_single_bad_points_hardly_matter() -> None:
    x = np.linspace(1, 100, 200)
    measured = 0.5 * x
    measured[::20] *= 3.0
    number = solve.Number("slope", 0.01, 10.0, (1.0,), None, None)
    fitted = solve.solve((number,), lambda values: values["slope"] * x, measured, "line")
    assert near(fitted.values["slope"], 0.5, 0.02)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "few", "numbers"),
    [("gemm", gemms(GEMM)[::30], len(KINDS[0].numbers)), ("attention_decode", decodes(DECODE)[::18], 7)],
)
def test_too_few_points_are_refused(
    kind: str, few: pd.DataFrame, numbers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "data", **{kind: few})
    assert command(tmp_path / "data", tmp_path / "out.yaml") == 2
    complaint = capsys.readouterr().err
    assert f"{kind}.csv: {kind}: " in complaint
    assert f"points to fit {numbers} numbers; at least {4 * numbers} are needed" in complaint
    assert not (tmp_path / "out.yaml").exists()


def test_shapes_that_no_form_is_for_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Narrow products alone, or a handful of fp8 rows beside good ones: refused, never dropped in silence."""
    narrow = grid(m=list(range(1, 41)), n=[512], k=[512, 1024]).assign(dtype="bfloat16", latency_us=5.0)
    few = gemms(GEMM, dtype="fp8").head(1)
    for name, frame in (("narrow", narrow), ("few", pd.concat((gemms(GEMM), few)))):
        assert command(write(tmp_path / name, gemm=frame), tmp_path / "x.yaml") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "points to fit" in said and "are needed" in said
        assert not (tmp_path / "x.yaml").exists()


def test_bad_input_names_file_line_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "data", gemm=gemms(GEMM))
    lines = (folder / "gemm.csv").read_text().splitlines()
    lines[6] = lines[6].rsplit(",", 1)[0] + ",soon"
    (folder / "gemm.csv").write_text("\n".join(lines))
    assert command(folder, tmp_path / "out.yaml") == 2
    assert f"{folder / 'gemm.csv'}:7: latency_us: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--engine", "trtlm"], "backend: no rows of"),
        (["--gpu", "h1000"], "h1000"),
        (["--jobs", "0"], "--jobs"),
        (["--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_words_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert command(folder, tmp_path / "out.yaml", *more) == 2
    assert complaint in capsys.readouterr().err


def test_without_scipy_the_error_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert command(folder, tmp_path / "out.yaml") == 2
    assert "pip install 'servesim[calibrate]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "frame"),
    [("gemm", gemms(GEMM)), ("attention_decode", decodes(DECODE)), ("attention_prefill", prefills(PREFILL))],
)
def test_the_split_looks_at_rows_alone(kind: str, frame: pd.DataFrame) -> None:
    held = held_out(frame, kind)
    assert 0.25 < held.mean() < 0.75
    part = frame.sample(frac=0.4, random_state=1)
    assert (held_out(part, kind) == held[part.index]).all()


def test_a_whole_model_is_held_out() -> None:
    assert held_out(grid(m=SIZES, n=[5120, 4096], k=[4096, 5120]).query("n == 5120 or k == 5120"), "gemm").all()
    attention = grid(batch=[1, 2, 3, 4], context_len=[64, 128, 256], heads=[16], kv_heads=[2])
    assert held_out(attention, "attention_decode").all()
    assert not held_out(attention.assign(kv_heads=4), "attention_decode").all()


@pytest.mark.parametrize("engine", [Engine(), Engine(weight_dtype="fp8"), Engine(kv_cache_dtype="fp8")])
def test_operators_are_those_that_the_simulator_prices(engine: Engine) -> None:
    """A row of a measured file has the counts of the step's own operator."""
    llama = model("llama-3.1-8b")
    fp8, cache = engine.weight_dtype == "fp8", "fp8" if engine.kv_cache_dtype == "fp8" else "bfloat16"
    step = {each.name: each for each in operators(llama, H100, engine, BatchShape(6, 6 * 700))}
    frame = pd.DataFrame({"m": [6], "k": [4096], "n": [6144], "dtype": ["fp8" if fp8 else "bfloat16"]})
    pairs = [(gemm_operator(frame), step["qkv"])]
    heads = pd.DataFrame({"heads": [32], "kv_heads": [8], "head_dim": [128], "kv_dtype": [cache]})
    pairs.append((decode_operator(heads.assign(batch=6, context_len=700)), step["attention_decode"]))
    prompts = heads.assign(batch=2, prompt_len=300, past_len=50)
    shard = Shard.of(llama, H100, engine)
    pairs.append((prefill_operator(prompts), shard.prefill_attention([(300, 50), (300, 50)])))
    for found, expected in pairs:
        for name in ("flops", "bytes"):
            assert getattr(found, name) == [getattr(expected, name)], (name, expected.name)
        assert (found.kind, found.dtype, found.narrow) == (expected.kind, expected.dtype, expected.narrow)
        assert [np.ravel(each)[0] for each in found.dims] == [np.ravel(each)[0] for each in expected.dims]


def test_the_quickest_kernel_of_a_shape_counts() -> None:
    frame = pd.DataFrame({"m": [1, 1, 2], "kernel": ["slow", "fast", "slow"], "latency_us": [5.0, 4.0, 6.0]})
    assert quickest(frame)["latency_us"].tolist() == [4.0, 6.0]


@pytest.fixture
def steps(tmp_path: Path) -> Callable[[Calibration, float, float, float], Path]:
    """Whole steps of an H200 as they would be with this much host time."""

    def write_steps(kernel: Calibration, per_step: float, per_seq: float, front: float) -> Path:
        rng, where = np.random.default_rng(6), ("h200_sxm", "llama-3.1-8b", "fp8")
        (tmp_path / "steps").mkdir()
        rows = [
            (context, n, kernels(kernel, *where, n, context) + per_step + per_seq * n)
            for context in (350, 3000, 8000, 13000)
            for n in (1, 8, 40, 60)
        ]
        decode = pd.DataFrame(rows, columns=["mean_context_tokens", "batch_from_throughput", "seconds"])
        decode["itl_ms"] = 1e3 * decode["seconds"] * np.exp(0.01 * rng.standard_normal(len(decode)))
        decode.to_csv(tmp_path / "steps" / "dynamo_h200_decode.csv", index=False)
        lengths = [100, 500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6000]
        whole = [kernels(kernel, *where, 0, 0, ((s, 0),)) + per_step + per_seq + front for s in lengths]
        prefill = pd.DataFrame({"isl": lengths, "ttft_ms": 1e3 * np.array(whole)})
        prefill.to_csv(tmp_path / "steps" / "dynamo_h200_prefill.csv", index=False)
        return tmp_path

    return write_steps


def test_host_time_comes_back(steps: Callable[[Calibration, float, float, float], Path]) -> None:
    kernel = load_calibration(FOLDER / "h200_sxm-vllm.yaml")
    host = fit_host(kernel, steps(kernel, 1.2e-3, 2e-5, 0.02))
    assert host is not None
    assert near(host.values["host_s"], 1.2e-3, 0.08) and near(host.values["host_per_seq_s"], 2e-5, 0.1)
    assert near(host.values["front_end_s"], 0.02, 0.02)
    assert 0.004 < host.noise["sigma"] < 0.02 and host.noise["prefill_sigma"] < 0.005


@pytest.mark.parametrize("name", NAMES)
def test_packaged_files_load_and_reach_what_they_promise(name: str) -> None:
    """Matrix products and decode attention within the goals, as far as the tables allow."""
    assert name in packaged()
    found = load_calibration(FOLDER / f"{name}.yaml")
    assert not found.ideal and found.name == name and f"{found.gpu}-{found.engine}" == name
    assert found.date == "2026-11-25" and found.licence and "aiconfigurator" in found.source
    gemm, decode = found.errors["gemm"], found.errors["attention_decode"]
    assert gemm["median_percent"] <= 7.5 and gemm["p90_percent"] <= 23
    assert decode["median_percent"] <= 9 and decode["p90_percent"] <= 47
    if found.gpu in ("h100_sxm", "h200_sxm") and found.engine == "vllm":
        assert max(gemm["median_percent"], decode["median_percent"]) <= 5.3
        assert max(gemm["p90_percent"], decode["p90_percent"]) <= 15
    assert set(found.ranges.model_dump(exclude_none=True)) == {
        *("gemm_rows", "decode_sequences", "decode_context_tokens", "prompt_tokens")
    }
    vllm = found.engine == "vllm"
    assert (found.host_s > 0, found.front_end_s > 0, found.noise.sigma > 0) == (vllm, True, vllm)
    assert {2, 4, 8} == set(found.operators.all_reduce.by_gpus) and found.operators.sampling is not None
    assert {"all_gather", "reduce_scatter", "all_to_all"} <= set(found.network)


@pytest.mark.parametrize("gpu", ["h100_sxm", "h200_sxm", "b200_sxm", "l40s"])
def test_static_scales_pay_the_pass_alone(gpu: str) -> None:
    trtllm, vllm = (load_calibration(FOLDER / f"{gpu}-{engine}.yaml").operators for engine in ("trtllm", "vllm"))
    assert trtllm.gemm_fp8 is not None and vllm.gemm_fp8 is not None
    assert trtllm.gemm_fp8.floor_s == trtllm.gemm.floor_s
    assert gpu == "l40s" or trtllm.gemm_fp8.quantise_fraction is not None
    assert vllm.gemm_fp8.floor_s > vllm.gemm.floor_s


def test_the_launch_that_quantises_is_taken_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fp8 = GEMM.model_copy(update={"floor_s": 13e-6, "quantise_fraction": 0.4, "compute_fraction": 0.6})
    both = pd.concat((gemms(GEMM), gemms(fp8, dtype="fp8")))
    for engine, floor in (("trtllm", 4e-6), ("other", 13e-6)):
        folder = write(tmp_path / engine, backend=engine, gemm=both)
        assert command(folder, tmp_path / f"{engine}.yaml", "--engine", engine) == 0
        found = load_calibration(tmp_path / f"{engine}.yaml")
        form = found.operators.gemm_fp8
        assert form is not None and near(form.floor_s, floor, 0.1) and near(form.compute_fraction, 0.6, 0.03)
        taken = engine == "trtllm"
        assert near(form.quantise_fraction, 0.4, 0.1)  # type: ignore[arg-type]
        assert found.errors["gemm_fp8"]["median_percent"] < 2  # of what was measured
        assert ("without the launch that finds the scales" in capsys.readouterr().out) == taken


def test_bands_of_rows_come_back(tmp_path: Path) -> None:
    """Where the first rows of a band cost more, as vLLM's fp8 kernels do; no band is found where there is none."""
    rows = [1, 8, 16, 17, 24, 32, 48, 64, 65, 80, 96, 128, 129, 192, 256, 257, 384, 512, 513, 1024, 2048, 4096, 8192]
    frame = grid(m=rows, n=[1024, 2048, 4096, 8192, 16384], k=[1024, 4096, 8192, 14336]).assign(dtype="fp8")
    banded = Gemm(compute_fraction=0.6, bandwidth_fraction=0.8, floor_s=5e-6, overlap_p=3.0, band_excess={64: 0.3})
    seconds = banded.seconds(gemm_operator(frame), machine(H100, "fp8"))
    both = pd.concat((gemms(GEMM), timed(frame, seconds, 0.01, np.random.default_rng(3))))
    assert command(write(tmp_path / "banded", gemm=both), tmp_path / "banded.yaml") == 0
    form = load_calibration(tmp_path / "banded.yaml").operators.gemm_fp8
    assert form is not None and near(form.band_excess[64], 0.3, 0.15)
    assert all(excess < 0.05 for top, excess in form.band_excess.items() if top != 64)


def test_plain_rooflines_to_compare_with(folder: Path, found: Calibration, tmp_path: Path) -> None:
    out = tmp_path / "plain.yaml"
    assert command(folder, out, "--form", "roofline") == 0
    plain = load_calibration(out)
    assert plain.name == "h100_sxm-vllm-roofline"
    assert set(plain.operators.gemm.model_fields_set) == {"compute_fraction", "bandwidth_fraction", "floor_s"}
    assert not plain.operators.attention_prefill.tiled and plain.operators.attention_decode.overlap_p is None
    assert all(group.one_shot is None for group in plain.operators.all_reduce.by_gpus.values())
    for kind in ("gemm", "attention_prefill", "attention_decode"):  # the data are not of that form
        assert plain.errors[kind]["p90_percent"] > 1.5 * found.errors[kind]["p90_percent"], kind


def test_traps_of_the_tables() -> None:
    a100 = load_calibration(FOLDER / "a100_sxm-vllm.yaml")
    assert a100.software["gemm"].startswith("sglang")  # type: ignore[index]
    notes = load_calibration(FOLDER / "a100_sxm-trtllm.yaml").errors["fit"]["notes"]
    assert any("4 to 8 query heads" in line for line in notes)


@needs_data
@pytest.mark.parametrize(
    ("name", "keys"), [("h100_sxm-vllm", ("attention_decode",)), ("a100_sxm-vllm", ("gemm",))], ids=str
)
def test_packaged_files_are_what_the_fit_gives(name: str, keys: tuple[str, ...]) -> None:
    gpu, _, engine = name.partition("-")
    shipped = load_calibration(FOLDER / f"{name}.yaml").operators
    for kind in KINDS:
        if kind.key in keys:
            path, frame, _ = read(DATA, gpu, engine, kind.file)
            found = fit_kind(kind, gpus.parse(gpu), frame, path)
            assert found is not None
            for number, value in found.values.items():
                assert getattr(shipped, kind.key).model_dump()[number] == pytest.approx(value, rel=0.01), number


@needs_data
def test_points_read_from_the_cache_are_left_out() -> None:
    """An L40S reads up to 128 MB from its second cache, faster than its memory is."""
    kind = next(each for each in KINDS if each.key == "attention_decode")
    _, frame, _ = read(DATA, "l40s", "vllm", kind.file)
    gpu = gpus.parse("l40s")
    for rows, most in ((frame[kind.rows(frame)], 0.2), (select(kind, frame, "l40s"), 0.0)):
        share = kind.make(rows).bytes / (rows["latency_us"] * 1e-6) / (gpu.memory_gb_per_s * 1e9)
        assert (share > 1.0).mean() >= most and ((share > 1.05).mean() == 0) == (most == 0)


@needs_data
def test_a_hole_in_the_measurements_is_not_filled_silently() -> None:
    with pytest.raises(ScenarioError, match="unknown GPU"):
        read(DATA, "h1000", "vllm", "gemm")
