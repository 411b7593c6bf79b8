"""Request classes: joint lengths from a file, shared prefixes, samples of one prompt, and results of each class."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from sim.errors import Complaint
from sim.request import Request
from sim.workload import make_source
from sim.workload.lengthfile import parse

BASE: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h100_sxm", "engine": {"max_model_len": 8192}}
ARRIVALS = {"name": "poisson", "rate_per_s": 8}
DRAWN = {
    "prompt_tokens": {"name": "lognormal", "mean": 300, "cv": 1, "max": 4000},
    "output_tokens": {"name": "uniform", "min": 5, "max": 60},
}


def scenario(workload: dict[str, Any], folder: Path | None = None, **top: Any) -> sim.Scenario:
    name = str(folder / "x.yaml") if folder else "x.yaml"
    return sim.from_mapping({**BASE, **top, "workload": {"arrivals": ARRIVALS, "num_requests": 500, **workload}}, name)


def requests(made: sim.Scenario) -> list[Request]:
    return list(iter(make_source(made).next, None))


def refused(workload: dict[str, Any], folder: Path | None = None) -> str:
    with pytest.raises(sim.ScenarioError) as error:
        scenario(workload, folder)
    return str(error.value)


# -- lengths from a file

PAIRS = [(10, 1), (20, 2), (30, 3), (4000, 40)]


def written(folder: Path, header: str = "prompt_tokens,output_tokens", rows: Any = PAIRS) -> Path:
    path = folder / "lengths.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_pairs_stay_together(tmp_path: Path) -> None:
    written(tmp_path)
    made = scenario({"lengths": {"name": "empirical", "file": "lengths.csv"}, "num_requests": 8000}, tmp_path)
    counts = Counter((r.prompt_tokens, r.output_tokens) for r in requests(made))
    assert set(counts) == set(PAIRS)
    assert all(abs(count - 2000) < 5 * np.sqrt(1500) for count in counts.values())


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("prompt_tokens,output_tokens", {}),
        ("ContextTokens,GeneratedTokens", {}),
        ("Request tokens,Response tokens", {}),
        ("num_prefill_tokens,num_decode_tokens", {}),
        ("in,out", {"prompt_column": "in", "output_column": "out"}),
        ('"in" , out', {"prompt_column": "in", "output_column": "out"}),
    ],
)
def test_columns(tmp_path: Path, header: str, options: dict[str, str]) -> None:
    written(tmp_path, header)
    made = scenario({"lengths": {"name": "empirical", "file": "lengths.csv", **options}}, tmp_path)
    assert {(r.prompt_tokens, r.output_tokens) for r in requests(made)} == set(PAIRS)
    (tmp_path / "x.yaml").write_text(made.to_yaml())
    assert sim.load(tmp_path / "x.yaml") == made


def test_other_columns_and_failed_rows_are_left_out() -> None:
    prompts, outputs = parse("a,prompt_tokens,b,output_tokens\nx,5,,7\n\ny,0,,3\nz,4,,0\n", "f.csv")
    assert (prompts.tolist(), outputs.tolist()) == ([5], [7])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.csv:1: is empty; a file of lengths has a header"),
        ("prompt_tokens,output_tokens\n", "f.csv:1: has a header, but no lengths"),
        (
            "prompt_tokens,outputs\n1,2\n",
            "f.csv:1: output_tokens: column missing; accepted: prompt_tokens,output_tokens or",
        ),
        ("prompt_tokens,output_tokens\n1,2\n3,-4\n", "f.csv:3: output_tokens: must be a whole number of tokens >= 0"),
        ("prompt_tokens,output_tokens\n1,2\nnan,4\n", "f.csv:3: prompt_tokens: must be a finite number"),
        ("prompt_tokens,output_tokens\n1,\n", "f.csv:2: output_tokens: is missing"),
        ("prompt_tokens,output_tokens\n1,x\n", "f.csv:2: output_tokens: must be a number, got 'x'"),
        ("prompt_tokens,output_tokens\n1,2.5\n", "f.csv:2: output_tokens: must be a whole number"),
        ("prompt_tokens,output_tokens\n1,2,3\n", "f.csv:2: row: has 3 fields, the header has 2"),
        ("prompt_tokens,output_tokens\n1,99999999\n", "f.csv:2: output_tokens: must be at most 10000000 tokens"),
        ("prompt_tokens,output_tokens\n0,2\n1,0\n", "f.csv:1: none of its 2 rows has both prompt and output tokens"),
        ("prompt_tokens,output_tokens,prompt_tokens\n1,2,3\n", "f.csv:1: prompt_tokens: stands 2 times in the header"),
    ],
)
def test_files_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(Complaint) as error:
        parse(text, "f.csv")
    assert error.value.what.startswith(message)


def test_a_bad_file_is_refused_before_anything_is_simulated(tmp_path: Path) -> None:
    written(tmp_path, rows=[(1, 2), (3, -4)])
    lengths = {"name": "empirical", "file": "lengths.csv"}
    message = "workload.lengths.file: lengths.csv:3: output_tokens: must be a whole number of tokens >= 0, got '-4'"
    assert refused({"lengths": lengths}, tmp_path).endswith(message)
    long = {"classes": {"a": {"lengths": lengths}}}
    assert "workload.classes.a.lengths.file: lengths.csv:3: output_tokens" in refused(long, tmp_path)
    assert "lengths.file: no such file: none.csv" in refused({"lengths": {**lengths, "file": "none.csv"}}, tmp_path)
    (tmp_path / "lengths.csv").write_bytes(b"prompt_tokens,output_tokens\n1,2\n\xff,3\n")
    assert "lengths.csv:3: is not UTF-8 text" in refused({"lengths": lengths}, tmp_path)
    written(tmp_path)
    named = {**lengths, "prompt_column": "prompts", "output_column": "output_tokens"}
    assert "lengths.csv:1: prompts: column missing; did you mean prompt_tokens?" in refused(
        {"lengths": named}, tmp_path
    )
    assert "workload.lengths.output_column: missing" in refused(
        {"lengths": {**lengths, "prompt_column": "a"}}, tmp_path
    )


def test_lengths_stand_alone(tmp_path: Path) -> None:
    written(tmp_path)
    lengths = {"name": "empirical", "file": "lengths.csv"}
    both = {"lengths": lengths, "prompt_tokens": 5}
    assert "workload.prompt_tokens: both lengths come from `lengths`" in refused(both, tmp_path)
    assert "workload.samples: needs prompt_tokens" in refused({"lengths": lengths, "samples": 4}, tmp_path)
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,2\n")
    trace = {"arrivals": {"name": "trace", "file": "t.csv"}}
    assert "workload.lengths: lengths come from the trace" in refused({**trace, "lengths": lengths}, tmp_path)
    assert "workload.samples: prompts come from the trace" in refused({**trace, "samples": 2}, tmp_path)


# -- prefixes


def test_the_prefix_is_part_of_the_prompt_and_cut_to_it() -> None:
    plain, shared = scenario(DRAWN), scenario({**DRAWN, "prefix": {"tokens": 200, "groups": 4}})
    without, found = requests(plain), requests(shared)
    assert [r.prompt_tokens for r in found] == [r.prompt_tokens for r in without]
    assert all(r.prefix == () for r in without)
    for r in found:
        ((name, tokens),) = r.prefix
        assert name in {f"default/prefix-{group}" for group in range(4)}
        assert tokens == min(200, r.prompt_tokens)
    assert min(r.prefix[0][1] for r in found) < 200


@pytest.mark.parametrize(("popularity", "exponent"), [("uniform", 1), ("zipf", 1), ("zipf", 0.5), ("zipf", 2)])
def test_popularity(popularity: str, exponent: float) -> None:
    prefix = {"tokens": 10, "groups": 5, "popularity": popularity, "exponent": exponent}
    counts = Counter(r.prefix[0][0] for r in requests(scenario({**DRAWN, "prefix": prefix, "num_requests": 20_000})))
    share = np.arange(1.0, 6.0) ** -(exponent if popularity == "zipf" else 0)
    expected = 20_000 * share / share.sum()
    found = np.array([counts[f"default/prefix-{group}"] for group in range(5)])
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected))


def test_groups_have_a_stream_of_their_own() -> None:
    """Nor do they change lengths or arrivals; each index keeps its draw where the classes' weights change."""
    few, many = ({**DRAWN, "prefix": {"tokens": 10, "groups": n}, "num_requests": 6000} for n in (2, 2000))
    first, second = requests(scenario(few)), requests(scenario(many))
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert [getattr(r, name) for r in first] == [getattr(r, name) for r in second]
    classes = {"a": {**DRAWN, "prefix": {"tokens": 10, "groups": 30}}, "b": DRAWN}
    even = requests(scenario({"classes": classes}))
    uneven = requests(scenario({"classes": {**classes, "b": {**DRAWN, "weight": 3}}}))
    both = [(x, y) for x, y in zip(even, uneven, strict=True) if x.cls == y.cls == "a"]
    assert len(both) > 50 and all(x.prefix == y.prefix and x.prompt_tokens == y.prompt_tokens for x, y in both)


def test_hit_rates() -> None:
    """Random prompts share nothing; of one common prefix all but the first hit the full blocks."""
    fixed = {"prompt_tokens": 1000, "output_tokens": 10}
    assert sim.simulate(scenario(fixed)).summary["prefix_cache_hit_rate"] == 0
    one = sim.simulate(scenario({**fixed, "prefix": {"tokens": 520}}))
    assert one.summary["prefix_cache_hit_rate"] == 499 * 512 / 500_000
    many = sim.simulate(scenario({**fixed, "prefix": {"tokens": 520, "groups": 10}}))
    assert many.summary["prefix_cache_hit_rate"] == 490 * 512 / 500_000
    off = scenario({**fixed, "prefix": {"tokens": 520}}, engine={"enable_prefix_caching": False})
    assert sim.simulate(off).summary["prefix_cache_hit_rate"] == 0
    classes = {label: {**fixed, "prefix": {"tokens": 520}} for label in ("a", "b")}
    two = sim.simulate(scenario({"classes": classes}))  # each class has prefixes of its own
    assert two.summary["prefix_cache_hit_rate"] == 498 * 512 / 500_000


def test_a_trace_can_have_prefixes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,100,2\n1,30,2\n2,0,2\n")
    trace = {"arrivals": {"name": "trace", "file": "t.csv"}, "num_requests": None, "prefix": {"tokens": 64}}
    found = requests(scenario(trace, tmp_path))
    assert [r.prefix for r in found] == [(("default/prefix-0", 64),), (("default/prefix-0", 30),), ()]
    assert sim.simulate(scenario(trace, tmp_path)).summary["finished"] == 2


def test_prefixes_that_are_refused() -> None:
    short = {"prompt_tokens": 100, "output_tokens": 5, "prefix": {"tokens": 101}}
    message = "workload.prefix.tokens: is more than the longest prompt, 100; prompt_tokens counts the whole prompt"
    assert message in refused(short)
    assert "workload.prefix.tokens: missing" in refused({**DRAWN, "prefix": {"groups": 3}})
    zipf = {"tokens": 3, "popularity": "zip"}
    assert "workload.prefix.popularity: must be one of uniform, zipf, got 'zip'" in refused({**DRAWN, "prefix": zipf})
    assert "workload.prefix.groups: must be a whole number from 1" in refused(
        {**DRAWN, "prefix": {"tokens": 3, "groups": 0}}
    )


# -- samples


def test_samples_ask_one_prompt_in_a_row() -> None:
    found = requests(scenario({**DRAWN, "samples": 8, "num_requests": 5000}))
    plain = requests(scenario({**DRAWN, "num_requests": 5000}))
    for k in range(0, 5000, 8):
        group = found[k : k + 8]
        assert len({r.prompt_tokens for r in group}) == 1 and group[0].prompt_tokens == plain[k // 8].prompt_tokens
        assert {r.prefix for r in group} == {((f"default/prompt-{k // 8}", group[0].prompt_tokens),)}
    assert [r.output_tokens for r in found] == [r.output_tokens for r in plain]
    assert [r.arrival_s for r in found] == [r.arrival_s for r in plain]


def test_samples_behind_a_common_prefix() -> None:
    found = requests(scenario({**DRAWN, "samples": 4, "prefix": {"tokens": 50, "groups": 3}}))
    for r in found:
        assert sum(tokens for _, tokens in r.prefix) == r.prompt_tokens
        assert r.prefix[0][0].startswith("default/prefix-") and r.prefix[0][1] == min(50, r.prompt_tokens)
    assert all(len({r.prefix for r in found[k : k + 4]}) == 1 for k in range(0, 500, 4))


def test_samples_of_a_class_among_others() -> None:
    found = requests(scenario({"classes": {"rollout": {**DRAWN, "samples": 5}, "chat": DRAWN}}))
    rollouts = [r for r in found if r.cls == "rollout"]
    assert 150 < len(rollouts) < 350
    assert all(r.prefix == rollouts[k // 5 * 5].prefix for k, r in enumerate(rollouts))
    assert len({r.prefix for r in rollouts}) == -(-len(rollouts) // 5)
    assert all(r.prefix == () for r in found if r.cls == "chat")


def test_samples_hit_the_whole_prompt() -> None:
    """All at once: the first computes it, the others all its full blocks but what the last token needs."""
    work = {"prompt_tokens": 1000, "output_tokens": 10, "samples": 4, "arrivals": "batch", "num_requests": 40}
    summary = sim.simulate(scenario(work)).summary
    assert summary["prefix_cache_hit_rate"] == 30 * 992 / 40_000
    assert summary["total_input_tokens"] == 40_000


# -- results by class

CLASSES = {
    "chat": {**DRAWN, "weight": 3, "slo": {"ttft_ms": 12}},
    "document": {"prompt_tokens": 4000, "output_tokens": 20, "max_tokens": 10, "priority": 5},
    "never": {**DRAWN, "weight": 1e-9},
}


def test_results_by_class() -> None:
    result = sim.simulate(scenario({"classes": CLASSES}, slo={"ttft_ms": 5000}))
    summary = json.loads(json.dumps(result.summary, allow_nan=False))
    assert list(summary["classes"]) == ["chat", "document", "never"]
    chat, document, never = summary["classes"].values()
    table = result.requests.to_pandas()
    for label, found in summary["classes"].items():
        mine = table[table["class"] == label]
        assert found["requests"] == len(mine) and found["finished"] == len(mine)
        assert found["total_output_tokens"] == mine["output_tokens"].sum()
        if len(mine):
            ttft_ms = (mine["first_token_s"] - mine["arrival_s"]) * 1000
            assert found["mean_ttft_ms"] == pytest.approx(ttft_ms.mean())
            assert found["p99_ttft_ms"] == pytest.approx(np.percentile(ttft_ms, 99))
            limit = 12 if label == "chat" else 5000
            assert found["slo_attainment"] == pytest.approx((ttft_ms <= limit).mean())
    assert never["mean_ttft_ms"] is None and never["requests"] == 0
    for name in ("requests", "completed", "total_input_tokens", "preemptions"):
        assert chat[name] + document[name] == summary[name]
    assert chat["request_throughput"] + document["request_throughput"] == pytest.approx(summary["request_throughput"])
    weighted = chat["mean_itl_ms"] * (chat["total_output_tokens"] - chat["completed"])
    weighted += document["mean_itl_ms"] * (document["total_output_tokens"] - document["completed"])
    assert weighted / (summary["total_output_tokens"] - 500) == pytest.approx(summary["mean_itl_ms"])
    assert set(table[table["class"] == "document"]["priority"]) == {5}
    assert set(table[table["class"] == "document"]["output_tokens"]) == {10}
    assert "busy_fraction" not in chat and "duration" not in chat


def test_one_class_is_not_reported_twice() -> None:
    assert "classes" not in sim.simulate(scenario(DRAWN)).summary
    assert "classes" not in sim.simulate(scenario({"classes": {"chat": DRAWN}})).summary


def test_a_comparison_of_classes(tmp_path: Path) -> None:
    """The nested value stands in no row of comparison.csv, and breaks nothing."""
    from sim.cli import main

    made = scenario({"classes": CLASSES, "num_requests": 60})
    (tmp_path / "x.yaml").write_text(made.to_yaml())
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "x.yaml"), "--policies", "vllm,static", "--out", str(out)]) == 0
    with (out / "comparison.csv").open() as file:
        metrics = {row["metric"] for row in csv.DictReader(file)}
    assert "mean_ttft_ms" in metrics and "classes" not in metrics
