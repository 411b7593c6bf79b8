"""Arrivals, lengths and sources: laws, exact figures, common random numbers (cases B35, B36, B39, B42, B44)."""

import subprocess
import sys
from itertools import islice
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import ScenarioError, from_mapping, registry
from sim.request import Request
from sim.streams import streams
from sim.workload import Source, make_source

ROOT = Path(__file__).parent.parent


def scenario(arrivals: Any, seed: int = 1, name: str = "x", **workload: Any) -> Any:
    lengths = (
        {} if "classes" in workload or arrivals["name"] == "trace" else {"prompt_tokens": 512, "output_tokens": 256}
    )
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "seed": seed,
        "workload": {"arrivals": arrivals, **lengths, **workload},
    }
    return from_mapping(data, name)


def requests(found: Any, replication: int = 0) -> list[Request]:
    source = make_source(found, replication)
    return list(iter(source.next, None))


def times(arrivals: Any, **workload: Any) -> np.ndarray[Any, Any]:
    return np.array([request.arrival_s for request in requests(scenario(arrivals, **workload))])


def gaps(arrivals: Any, count: int) -> np.ndarray[Any, Any]:
    return np.diff(times(arrivals, num_requests=count), prepend=0.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps(burstiness: float) -> None:
    """Case B35: mean 1/rate, coefficient of variation 1/sqrt(burstiness)."""
    found = gaps({"name": "gamma", "rate_per_s": 10, "burstiness": burstiness}, 100_000)
    assert found.mean() == pytest.approx(0.1, rel=0.02)
    assert found.std() / found.mean() == pytest.approx(1 / sqrt(burstiness), rel=0.03)


def test_infinite_burstiness_is_even_to_the_last_digit() -> None:
    arrivals = times({"name": "gamma", "rate_per_s": 10, "burstiness": float("inf")}, num_requests=100_000)
    assert (arrivals == np.arange(1, 100_001) / 10).all()
    assert (arrivals == times({"name": "constant", "rate_per_s": 10}, num_requests=100_000)).all()


@pytest.mark.parametrize("burstiness", [0, -1, float("nan"), float("-inf")])
def test_burstiness_must_be_positive(burstiness: float) -> None:
    with pytest.raises(ScenarioError, match=r"workload\.arrivals\.burstiness: must be a number over 0"):
        scenario({"name": "gamma", "rate_per_s": 10, "burstiness": burstiness}, num_requests=1)


def test_gamma_of_burstiness_1_is_poisson() -> None:
    poisson, gamma = ({"name": name, "rate_per_s": 3} for name in ("poisson", "gamma"))
    assert (gaps(poisson, 10) == gaps(gamma, 10)).all()


@pytest.mark.parametrize("name", ["poisson", "gamma"])
def test_ten_thousand_requests_at_200_per_second(name: str) -> None:
    """Case B36: rescaled, the last arrives at 50 s; plain, within 3 standard deviations of it: no drift."""
    arrivals = {"name": name, "rate_per_s": 200}
    rescaled = times({**arrivals, "rescale": True}, num_requests=10_000)
    plain = times(arrivals, num_requests=10_000)
    assert rescaled[-1] == pytest.approx(50.0, abs=1e-9)
    assert abs(plain[-1] - 50.0) < 3 * sqrt(10_000) / 200
    assert np.allclose(rescaled / plain, rescaled[0] / plain[0], rtol=1e-12)


def test_rescaling_needs_a_number() -> None:
    with pytest.raises(ScenarioError, match=r"workload\.num_requests: missing; rescaled arrivals"):
        scenario({"name": "poisson", "rate_per_s": 1, "rescale": True}, duration_s=5)


def test_batch_and_limits() -> None:
    assert times({"name": "batch"}, num_requests=5000).tolist() == [0.0] * 5000
    found = times({"name": "constant", "rate_per_s": 10}, duration_s=2.0)
    assert len(found) == 19 and found[-1] == 1.9  # what would arrive as the clock stops does not
    assert len(times({"name": "constant", "rate_per_s": 10}, duration_s=2.0, num_requests=7)) == 7
    with pytest.raises(ScenarioError, match="a workload has num_requests or duration_s"):
        scenario({"name": "batch"})


def test_requests_are_numbered_and_the_total_is_known() -> None:
    source = make_source(scenario({"name": "poisson", "rate_per_s": 5}, num_requests=9000))
    assert (source.total, source.reacts, source.warnings) == (9000, False, [])
    found = list(iter(source.next, None))
    assert [r.index for r in found] == list(range(9000)) and found[42].id == "r42"
    assert source.next() is None
    assert make_source(scenario({"name": "poisson", "rate_per_s": 5}, num_requests=9000, duration_s=1)).total is None


LENGTHS: list[tuple[dict[str, Any], float, float]] = [
    ({"name": "fixed", "tokens": 7}, 7.0, 0.0),
    ({"name": "uniform", "min": 10, "max": 20}, 15.0, sqrt((11**2 - 1) / 12)),
    ({"name": "normal", "mean": 500, "std": 50}, 500.0, 50.0),
    ({"name": "lognormal", "mean": 512, "cv": 1.0}, 512.0, 512.0),
    ({"name": "lognormal", "mean": 100, "cv": 0}, 100.0, 0.0),
    ({"name": "exponential", "mean": 1000}, 1000.0, 1000.0),
]


@pytest.mark.parametrize(("component", "mean", "std"), LENGTHS)
def test_length_distributions_have_their_mean_and_spread(component: dict[str, Any], mean: float, std: float) -> None:
    built = registry.build("lengths", registry.parse("lengths", component))
    drawn = built.draw(streams(3)("lengths"), 200_000)
    assert drawn.dtype == np.int64 and drawn.min() >= 1
    assert drawn.mean() == pytest.approx(mean, rel=0.01) and drawn.std() == pytest.approx(std, rel=0.02, abs=1e-9)


@given(
    name=st.sampled_from(["normal", "lognormal", "exponential"]),
    least=st.integers(1, 50),
    width=st.integers(0, 100),
    share=st.floats(0, 1),
    spread=st.floats(0, 100),
)
def test_lengths_are_clipped(name: str, least: int, width: int, share: float, spread: float) -> None:
    component = {"name": name, "mean": least + share * width, "min": least, "max": least + width}
    component.update({"normal": {"std": spread}, "lognormal": {"cv": spread}, "exponential": {}}[name])
    drawn = registry.build("lengths", registry.parse("lengths", component)).draw(streams(1)("x"), 200)
    assert least <= drawn.min() and drawn.max() <= least + width


@pytest.mark.parametrize(
    ("component", "path", "what"),
    [
        (
            {"name": "lognormal", "mean": 5000, "cv": 1, "max": 4096},
            "mean",
            "must be within [min, max], here from 1 to 4096, got 5000",
        ),
        ({"name": "normal", "mean": 0.5, "std": 1}, "mean", "here from 1 to 10000000, got 0.5"),
        ({"name": "exponential", "mean": 5, "min": 10, "max": 4}, "max", "must be at least min, 10, got 4"),
        ({"name": "uniform", "min": 5, "max": 4}, "max", "must be at least min, 5, got 4"),
    ],
)
def test_lengths_that_contradict_themselves(component: dict[str, Any], path: str, what: str) -> None:
    with pytest.raises(ScenarioError, match=rf"workload\.output_tokens\.{path}: ") as caught:
        scenario({"name": "batch"}, num_requests=1, output_tokens=component)
    assert what in str(caught.value)


def test_a_lognormal_median() -> None:
    built = registry.build("lengths", registry.parse("lengths", {"name": "lognormal", "mean": 1000, "cv": 2}))
    assert np.median(built.draw(streams(1)("x"), 100_001)) == pytest.approx(1000 / sqrt(5), rel=0.03)
    assert log(5) > 0


CHAT = {
    "prompt_tokens": {"name": "lognormal", "mean": 500, "cv": 1},
    "output_tokens": {"name": "exponential", "mean": 200},
}


def test_rate_length_law_and_seed_change_only_what_they_name() -> None:
    """Case B44, and common random numbers: the draws of one stream never depend on another's parameters."""
    base = {"num_requests": 5000, **CHAT}
    slow, fast = (requests(scenario({"name": "poisson", "rate_per_s": rate}, **base)) for rate in (2, 8))
    assert [(r.prompt_tokens, r.output_tokens) for r in slow] == [(r.prompt_tokens, r.output_tokens) for r in fast]
    assert [r.arrival_s / 4 for r in slow] == pytest.approx([r.arrival_s for r in fast], rel=1e-12)
    other = requests(scenario({"name": "poisson", "rate_per_s": 2}, **{**base, "prompt_tokens": 7}))
    assert [(r.arrival_s, r.output_tokens) for r in other] == [(r.arrival_s, r.output_tokens) for r in slow]
    assert requests(scenario({"name": "poisson", "rate_per_s": 2}, **base)) == slow
    assert requests(scenario({"name": "poisson", "rate_per_s": 2}, seed=2, **base))[0] != slow[0]
    assert requests(scenario({"name": "poisson", "rate_per_s": 2}, **base), replication=1)[0] != slow[0]
    short = requests(scenario({"name": "poisson", "rate_per_s": 2}, **{**base, "num_requests": 100}))
    assert short == slow[:100]


def test_another_process_makes_the_same_requests() -> None:
    program = (
        "from sim import from_mapping; from sim.workload import make_source\n"
        "s = from_mapping({'model': 'llama-3.1-8b', 'gpu': 'h100_sxm', 'workload': {'num_requests': 50, "
        "'arrivals': {'name': 'gamma', 'rate_per_s': 3, 'burstiness': 0.5}, 'classes': {"
        "'b': {'prompt_tokens': {'name': 'exponential', 'mean': 50}, 'output_tokens': 3}, "
        "'a': {'prompt_tokens': 5, 'output_tokens': {'name': 'normal', 'mean': 50, 'std': 9}}}}})\n"
        "print(list(iter(make_source(s).next, None)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(outputs) == 1 and "r49" in outputs.pop()


def test_classes_share_by_weight_and_draw_for_every_index() -> None:
    chat = {**CHAT, "weight": 3, "priority": 2}
    code = {"prompt_tokens": 4000, "output_tokens": 10}
    batch = {"name": "batch"}
    found = requests(scenario(batch, num_requests=20_000, classes={"chat": chat, "code": code}))
    share = sum(r.cls == "chat" for r in found) / len(found)
    assert share == pytest.approx(0.75, abs=0.01)
    assert {(r.prompt_tokens, r.output_tokens, r.priority) for r in found if r.cls == "code"} == {(4000, 10, 0)}
    more = requests(scenario(batch, num_requests=20_000, classes={"chat": {**chat, "weight": 6}, "code": code}))
    both = [(a, b) for a, b in zip(found, more, strict=True) if a.cls == b.cls == "chat"]
    assert len(both) > 10_000 and all(a == b for a, b in both)


def test_max_tokens_and_ignore_eos() -> None:
    batch = {"name": "batch"}
    found = requests(scenario(batch, num_requests=500, max_tokens=100, **CHAT))
    assert {r.max_tokens for r in found} == {100} and max(r.output_tokens for r in found) == 100
    assert min(r.output_tokens for r in found) < 50  # these end by a stop token
    found = requests(scenario(batch, num_requests=500, ignore_eos=True, **CHAT))
    assert all(r.max_tokens == r.output_tokens for r in found)
    assert {r.max_tokens for r in requests(scenario(batch, num_requests=5, **CHAT))} == {None}


def test_a_closed_loop_keeps_its_clients_busy() -> None:
    found = scenario({"name": "closed_loop", "concurrency": 3, "think_time_s": 0.5}, num_requests=7)
    source = make_source(found)
    assert source.reacts and source.total == 7
    first = list(iter(source.next, None))
    assert [(r.index, r.arrival_s) for r in first] == [(0, 0.0), (1, 0.0), (2, 0.0)]
    source.done(first[1], 2.0, "finished")
    source.done(first[0], 2.5, "rejected")
    assert [(r.index, r.arrival_s) for r in iter(source.next, None)] == [(3, 2.5), (4, 3.0)]
    source.done(first[2], 9.0, "finished")
    rest = list(iter(source.next, None))
    source.done(rest[0], 10.0, "finished")
    rest += list(iter(source.next, None))
    source.done(rest[1], 11.0, "finished")
    assert [r.index for r in rest] == [5, 6] and source.next() is None


def test_a_closed_loop_draws_by_index_whatever_ends_first() -> None:
    loop = {"name": "closed_loop", "concurrency": 2, "think_time_s": 1.0, "think_time": "exponential"}

    def run(order: list[int]) -> dict[int, tuple[int, float]]:
        source = make_source(scenario(loop, num_requests=4, **CHAT))
        flying = {r.index: r for r in iter(source.next, None)}
        seen = {r.index: (r.prompt_tokens, 0.0) for r in flying.values()}
        for index in order:
            source.done(flying[index], 10.0, "finished")
            for r in iter(source.next, None):
                flying[r.index] = r
                seen[r.index] = (r.prompt_tokens, r.arrival_s - 10.0)
        return seen

    one, two = run([0, 1]), run([1, 0])
    assert [one[i][0] for i in range(4)] == [two[i][0] for i in range(4)]
    assert (one[2][1], one[3][1]) == (two[3][1], two[2][1])  # think times belong to the request that ended


def test_a_closed_loop_stops_with_the_clock() -> None:
    source = make_source(scenario({"name": "closed_loop", "concurrency": 1}, duration_s=5.0))
    request = source.next()
    assert request is not None and source.total is None
    source.done(request, 5.0, "finished")
    assert source.next() is None


def test_clients_that_are_refused_at_once_for_ever_stop() -> None:
    source = make_source(scenario({"name": "closed_loop", "concurrency": 2}, duration_s=5.0))
    count = 0
    while (request := source.next()) is not None:
        count += 1
        source.done(request, request.arrival_s, "rejected")
        assert count < 20_000
    assert count >= 10_000 and len(source.warnings) == 1 and "rejected" in source.warnings[0]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n105,10,1\n103,20,2\n109,0,3\n104,40,0\n119,50,5\n", encoding="utf-8"
    )
    return tmp_path / "x.yaml"


def traced(trace: Path, **workload: Any) -> Source:
    arrivals = {"name": "trace", "file": "t.csv", **workload.pop("arrivals", {})}
    return make_source(scenario(arrivals, name=str(trace), **workload))


def test_a_trace_replays_whole_and_sorted(trace: Path) -> None:
    source = traced(trace)
    found = [(r.id, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in iter(source.next, None)]
    assert found == [("r0", 0.0, 20, 2), ("r1", 2.0, 10, 1), ("r2", 6.0, 0, 3), ("r3", 16.0, 50, 5)]
    assert source.total == 4 and not source.reacts
    assert source.warnings == ["t.csv: 1 rows without output tokens dropped, as failed requests"]


def test_a_traces_scale_and_window(trace: Path) -> None:
    """Case B42: the factor divides offsets, not stamps."""

    def arrivals(**parameters: Any) -> list[float]:
        return [r.arrival_s for r in iter(traced(trace, arrivals=parameters).next, None)]

    assert arrivals(rate_scale=2) == [0.0, 1.0, 3.0, 8.0]
    assert arrivals(window_s=[2, 16]) == [0.0, 4.0]
    assert arrivals(window_s=[1, 17], rate_scale=0.5) == [2.0, 10.0, 30.0]


def test_a_traces_limits_are_said(trace: Path) -> None:
    assert len(list(iter(traced(trace, duration_s=6.0).next, None))) == 2
    head = traced(trace, num_requests=3)
    assert head.total == 3 and "first 3 of 4 requests, 0.5 requests/s, 0.25 over the whole trace" in head.warnings[1]
    assert "has 4 requests, fewer than num_requests 9" in traced(trace, num_requests=9).warnings[1]


def test_a_traces_rate_can_be_set(trace: Path) -> None:
    found = scenario({"name": "trace", "file": "t.csv"}, name=str(trace))
    assert found.with_rate(1.0).workload.arrivals.params["rate_scale"] == 4.0
    found = scenario({"name": "trace", "file": "t.csv", "rate_scale": 3.0}, name=str(trace), num_requests=3)
    last = list(iter(make_source(found.with_rate(2.0)).next, None))[-1]
    assert 3 / last.arrival_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("arrivals", "what"),
    [
        ({"file": "none.csv"}, "workload.arrivals.file: no such file: none.csv"),
        ({"file": "bad.csv"}, "workload.arrivals.file: bad.csv:2: prompt_tokens: must be a whole number"),
        ({"window_s": [20, 30]}, "workload.arrivals.window_s: holds no request, the trace's are from 0 to 16 s"),
        ({"window_s": [3, 3]}, "workload.arrivals.window_s: must be [from, to] with from < to"),
        ({"window_s": [3]}, "workload.arrivals.window_s: must be a list of 2"),
        ({"rate_scale": 0}, "workload.arrivals.rate_scale: must be a number over 0"),
    ],
)
def test_traces_that_are_refused(trace: Path, arrivals: dict[str, Any], what: str) -> None:
    (trace.parent / "bad.csv").write_text("arrival_s,prompt_tokens,output_tokens\n1,-1,1\n", encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        traced(trace, arrivals=arrivals)
    assert what in str(caught.value)


def test_classes_of_a_trace(trace: Path) -> None:
    found = list(iter(traced(trace, classes={"a": {"priority": 1}, "b": {"max_tokens": 2}}).next, None))
    assert {r.cls for r in found} == {"a", "b"}
    assert all((r.priority, r.max_tokens) == ((1, None) if r.cls == "a" else (0, 2)) for r in found)
    with pytest.raises(ScenarioError, match=r"workload\.classes\.a\.prompt_tokens: lengths come from the trace"):
        traced(trace, classes={"a": {"prompt_tokens": 1}})


def test_a_plain_trace_that_looks_like_dates_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n1700000000,1,1\n", encoding="utf-8")
    source = traced(tmp_path / "x.yaml")
    request = source.next()
    assert request is not None and request.arrival_s == 1.7e9 and "used as it stands" in source.warnings[0]


def test_sources_are_lazy() -> None:
    """A billion requests can be asked for; what is not asked for is not made."""
    source = make_source(scenario({"name": "poisson", "rate_per_s": 1e6}, num_requests=10**9))
    assert len(list(islice(iter(source.next, None), 10_000))) == 10_000
