"""What `explain` says: the lecture's verdicts with its numbers, and that its parts add up."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis.plots.roofline import roofline
from sim import ScenarioError, from_mapping
from sim.cli import main
from sim.cost import packaged
from sim.explain import explain, text

WORKLOAD = {"num_requests": 1, "arrivals": "batch", "prompt_tokens": 1, "output_tokens": 1}
MHA = {  # wide and few heads' worth of everything but the MLP, so that limits show
    "name": "wide",
    "num_hidden_layers": 2,
    "hidden_size": 2**17,
    "num_attention_heads": 16,
    "head_dim": 128,
    "intermediate_size": 2**17,
    "vocab_size": 32000,
}


IDEAL = {"name": "roofline", "calibration": "ideal"}


def explained(
    model: Any = "llama-2-13b",
    cost: Any = IDEAL,
    engine: Any = None,
    gpu: Any = None,
    policy: Any = "vllm",
    **sizes: int,
) -> Any:
    gpu = gpu or {"name": "h100_sxm", "memory_gib": 2000.0}
    data = {"model": model, "gpu": gpu, "cost": cost, "engine": engine or {}, "policy": policy, "workload": WORKLOAD}
    return explain(from_mapping(data, "x"), **sizes)


def by_name(step: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in step["operators"]}


def test_the_parts_add_up() -> None:
    for found in (explained(), explained("mixtral-8x7b"), explained(engine={"tensor_parallel_size": 4})):
        for step in (found["prefill"], found["decode"]):
            assert sum(row["time_s"] for row in step["operators"]) == pytest.approx(step["total_s"], rel=1e-9)
            assert sum(row["share"] for row in step["operators"]) == pytest.approx(1, rel=1e-9)
            for row in step["operators"]:
                assert row["intensity"] == pytest.approx(row["flops"] / row["bytes"] if row["bytes"] else 0)
        assert found["ridge_flop_per_byte"] == pytest.approx(295, abs=0.5)
        json.dumps(found, allow_nan=False)
        assert max(map(len, text(found).splitlines())) <= 100


def test_the_shape_of_the_json() -> None:
    found = explained(batch=4, context=100, prompt=50)
    assert {k: found["prefill"][k] for k in ("batch", "prompt")} == {"batch": 4, "prompt": 50}
    assert {k: found["decode"][k] for k in ("batch", "context")} == {"batch": 4, "context": 100}
    keys = {"name", "flops", "bytes", "intensity", "bound", "time_s", "share"}
    for step in (found["prefill"], found["decode"]):
        assert all(keys <= set(row) for row in step["operators"]) and step["total_s"] > 0


def test_bounds() -> None:
    found = explained(engine={"tensor_parallel_size": 2}, batch=8, prompt=2048, context=2048)
    prefill, decode = by_name(found["prefill"]), by_name(found["decode"])
    assert prefill["gate_up"]["bound"] == prefill["attention_prefill"]["bound"] == "compute"
    assert decode["gate_up"]["bound"] == decode["attention_decode"]["bound"] == prefill["norms"]["bound"] == "memory"
    assert prefill["all_reduce"]["bound"] == "network" and prefill["all_reduce"]["comm_bytes"] > 0


def test_bound_by_latency(tmp_path: Path) -> None:
    words = {"name": "c", "gpu": "h100_sxm", "engine": "e", "software": "s", "source": "s", "licence": "l", "date": "d"}
    calibration = {"schema": 1, **words, "operators": {"elementwise": {"floor_s": 1e-4}}, "host_s": 0.002}
    (tmp_path / "c.yaml").write_text(json.dumps(calibration))
    cost = {"name": "roofline", "calibration": str(tmp_path / "c.yaml")}
    assert explained(cost=cost)["decode"]["host_s"] == 0  # hidden behind the GPU
    found = explained(cost=cost, policy={"name": "vllm", "async_scheduling": False})
    norms, launches = by_name(found["decode"])["norms"], 2 * 40 + 1
    assert norms["time_s"] == pytest.approx(norms["ideal_s"] + launches * 1e-4, rel=1e-9)
    assert norms["ratio"] == norms["time_s"] / norms["ideal_s"]
    assert by_name(found["decode"])["qkv"]["ratio"] == 1
    assert by_name(found["decode"])["norms"]["bound"] == "latency" and found["decode"]["host_s"] == 0.002
    shares = sum(row["share"] for row in found["decode"]["operators"])
    assert shares + 0.002 / found["decode"]["total_s"] == pytest.approx(1, rel=1e-9)
    assert "host" in text(found)


@pytest.mark.parametrize(("batch", "prompt"), [(1, 64), (4, 64)])
def test_mlp_intensity_is_the_number_of_tokens(batch: int, prompt: int) -> None:
    """B x T in prefill, B in decode."""
    found = explained(MHA, batch=batch, prompt=prompt)["lecture"]
    assert found["mlp_intensity_limit"] == {"prefill": batch * prompt, "decode": batch}
    assert found["mlp_intensity"]["prefill"] == pytest.approx(batch * prompt, rel=0.01)
    assert found["mlp_intensity"]["decode"] == pytest.approx(batch, rel=0.01)


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_attention_intensity_whatever_the_batch(batch: int) -> None:
    """S T / (S + T): 1 in decode; S/2 in prefill over the full square, of which a causal prompt computes half."""
    s = 1024
    found = explained(batch=batch, context=s, prompt=s)
    decode = by_name(found["decode"])["attention_decode"]
    assert decode["intensity"] == pytest.approx(s / (s + 1), rel=1e-12)
    prefill = by_name(found["prefill"])["attention_prefill"]
    assert prefill["intensity"] == pytest.approx((s + 1) / 4, rel=1e-12)  # causal: half of S/2
    assert found["lecture"]["attention_intensity_full_square"]["prefill"] == s / 2


def test_grouped_heads_against_all_and_one() -> None:
    found = explained("llama-3.1-8b", batch=64, context=4096)
    mha, gqa, mqa = (found["heads"][label] for label in ("mha", "as_given", "mqa"))
    assert (mha["num_key_value_heads"], gqa["num_key_value_heads"], mqa["num_key_value_heads"]) == (32, 8, 1)
    assert mha["kv_bytes_per_token"] == 4 * gqa["kv_bytes_per_token"] == 32 * mqa["kv_bytes_per_token"]
    assert mha["attention_intensity"] == pytest.approx(1, rel=1e-3)
    assert gqa["attention_intensity"] == pytest.approx(4, rel=1e-2)
    assert mha["decode_s"] > gqa["decode_s"] > mqa["decode_s"]
    assert gqa["decode_s"] == found["decode"]["total_s"]


def test_the_kv_cache_against_none() -> None:
    found = explained(batch=1, context=1024)["kv_cache"]
    assert found["bytes_per_token"] == 2 * 2 * 40 * 40 * 128
    assert found["times_slower_without"] > 3 and found["step_without_s"] > found["step_s"]


def test_a_mixture_reads_what_it_touches() -> None:
    one, many = (by_name(explained("mixtral-8x7b", batch=b)["decode"])["experts_gate_up"] for b in (1, 64))
    assert many["bytes"] / one["bytes"] == pytest.approx(4, rel=0.01)  # 2 of 8 experts, then all
    assert many["flops"] == 64 * one["flops"]


@pytest.mark.parametrize("name", [name for name in packaged() if name.endswith("-vllm")])
@pytest.mark.parametrize("tp", [1, 2])
def test_a_packaged_calibration_is_nowhere_below_the_roofline(name: str, tp: int) -> None:
    cost, gpu = {"name": "roofline", "calibration": name}, {"name": name.removesuffix("-vllm"), "memory_gib": 2000.0}
    for model in ("llama-3.1-8b", "mixtral-8x7b"):
        found = explained(model, cost, {"tensor_parallel_size": tp}, gpu, batch=16, prompt=2048)
        for step in (found["prefill"], found["decode"]):
            assert {row["name"]: row["ratio"] for row in step["operators"] if not row["ratio"] >= 1} == {}
            assert sum(row["time_s"] for row in step["operators"]) == pytest.approx(step["total_s"], rel=1e-9)
            assert 1.1 < step["total_s"] / step["ideal_s"] < 3
        known = r"\(median error of its kernels: matrix products \d+ %, decode attention \d+ %\)"
        assert re.fullmatch(f"calibrated by {name} {known}", found["note"])
        lines = text(found).splitlines()
        lines.remove(f"cost: {found['note']}")
        assert max(map(len, lines)) <= 100


def test_every_figure_of_a_large_step_stands_apart() -> None:
    """A total of 1,900,058 GFLOP and 1,430,316 MB once ran into one another."""
    lines = text(explained("llama-3.1-8b", "roofline", batch=64, prompt=2048)).splitlines()
    heading = next(place for place, line in enumerate(lines) if line.startswith("  operator"))
    rows = [line.split() for line in lines[heading + 1 :][: lines[heading:].index("") - 1]]
    assert rows[-1][0] == "total" and len(rows[-1]) == 8
    assert {len(row) for row in rows[:-1]} == {9}


def test_the_chart_of_a_packaged_calibration(tmp_path: Path) -> None:
    """Points hang under the roof, so it differs from the ideal one, and it is not blank."""
    pictures = []
    for cost in ("roofline", IDEAL):
        png = roofline(explained("llama-3.1-8b", cost, batch=16, prompt=2048))
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)
        assert len(pixels) > 400_000 and (pixels.min(axis=1) < 200).mean() > 0.01  # ink
        blue = (abs(pixels - np.array([0, 114, 178])).sum(axis=1) < 60).sum()
        orange = (abs(pixels - np.array([213, 94, 0])).sum(axis=1) < 60).sum()
        assert min(blue, orange) > 200
        pictures.append(png)
    assert pictures[0] != pictures[1]


def test_refusals() -> None:
    with pytest.raises(ScenarioError, match=r"cost.*linear prices a step as a whole"):
        explained(cost={"name": "linear", "base_s": 1.0})
    with pytest.raises(ScenarioError, match="--batch: '0' must be a whole number"):
        explained(batch=0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "s.yaml"
    scenario.write_text(json.dumps({"model": "llama-3.1-8b", "gpu": "h100_sxm", "workload": WORKLOAD}))
    assert main(["explain", str(scenario), "--batch", "8", "--context", "100", "--prompt", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prefill"]["batch"], found["decode"]["context"], found["prefill"]["prompt"]) == (8, 100, 9)
    assert main(["explain", str(scenario), "--out", str(tmp_path / "out"), "--set", "model=opt-13b"]) == 0
    assert "opt-13b" in capsys.readouterr().out
    picture = (tmp_path / "out" / "roofline.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and len(picture) > 20_000
    assert main(["explain", str(scenario), "--batch", "x"]) == 2
    assert capsys.readouterr().err == "--batch: 'x' must be a whole number from 1 to 10,000,000\n"
