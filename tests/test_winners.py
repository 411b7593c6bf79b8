"""Who wins, by how much and why: constructed results with a known winner, a tie, and one replication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import compare, winners
from analysis.catalog import PARTS
from analysis.load import Run
from analysis.variants import Variant
from sim.cli import main
from tests.fakeresults import serve, write

USUAL: dict[str, Any] = {
    "finished": 100, "output_throughput": 1000.0, "request_goodput": 5.0, "slo_attainment": 1.0, "duration": 10.0,
    "steps": 1000, "busy_fraction": 1.0, "engines": 1, "mean_batch_size": 10.0, "max_batch_size": 32,
    "mean_waiting": 0.0, "mean_kv_usage": 0.2, "max_kv_usage": 0.3, "p99_ttft_ms": 100.0, "mean_e2el_ms": 1000.0,
    "mean_queue_ms": 20.0, "mean_prefill_ms": 80.0, "mean_decode_ms": 900.0, "p99_tpot_ms": 9.0, "streamed": True,
}  # fmt: skip


def requests(lost: int = 0, cut: int = 0, status: str = "rejected", **columns: Any) -> pd.DataFrame:
    """100 requests of 10 output tokens; the first ones did not finish, the last ones were cut to 5."""
    finished = np.arange(100) >= lost
    tokens = np.where(np.arange(100) < 100 - cut, 10, 5)
    ends = {"status": np.where(finished, "finished", status), "output_tokens": tokens, "measured": finished}
    parts = {f"{part}_s": 0.0 for part in PARTS} | {"queue_s": 0.02, "prefill_s": 0.08, "decode_s": 0.9}
    times = {"arrival_s": 9 * np.arange(100.0), "class": "default", "replica": 0, "prompt_tokens": 5}
    made = pd.DataFrame({"request_id": [f"r{number}" for number in range(100)], **ends, **times, **(parts | columns)})
    made["first_token_s"] = made["arrival_s"] + made["queue_s"] + made["prefill_s"]
    made["finish_s"] = made["first_token_s"] + made["decode_s"] + made["preempted_s"]
    made["ttft_ms"] = 1000 * (made["first_token_s"] - made["arrival_s"])
    made["e2el_ms"] = 1000 * (made["finish_s"] - made["arrival_s"])
    made["tpot_ms"] = 1000 * (made["finish_s"] - made["first_token_s"]) / (made["output_tokens"] - 1)
    return made


def steps(plain_ms: float = 100.0, mixed_ms: float = 0.0, alone_ms: float = 0.0, **columns: Any) -> pd.DataFrame:
    """For each of those requests a step of 80 ms for its prompt, then nine that decode: with prompts if `mixed_ms` is
    given, each after one of prompts alone if `alone_ms` is."""
    rows = []
    for request in range(100):
        now = 9 * request + 0.02
        kinds = [(None, 80.0, 500, 0)]
        for _ in range(9):
            kinds += [(None, alone_ms, 300, 0)] * (alone_ms > 0)
            kinds += [(0.0, mixed_ms, 400, 1)] if mixed_ms else [(0.0, plain_ms, 0, 1)]
        for tick, spent_ms, prompts, decoding in kinds:
            row = {"tick": tick, "decided_s": now, "start_s": now, "end_s": now + spent_ms / 1000, "seqs": 10}
            rows.append(row | {"emitted": decoding, "prefill_tokens": prompts, "decode_tokens": decoding, "engine": 0})
            now += spent_ms / 1000
    return pd.DataFrame(rows).assign(**columns)


def made(
    label: str, *replications: dict[str, Any], of: pd.DataFrame | None = None, until: float | None = None, **asked: Any
) -> Variant:
    """A variant whose replications have these values, the others as usual; `asked` as in `requests`, `of` its steps,
    `until` the time at which its window ends."""
    runs = []
    for number, values in enumerate(replications):
        scenario = {"seed": 1, "workload": {"duration_s": until}, "name": "x", "slo": {"ttft_ms": 500, "tpot_ms": 15}}
        run = Run(Path(label), scenario, USUAL | {"policy": label, "replication": number} | values, {})
        run.__dict__ |= {"requests": requests(**asked), "steps": steps() if of is None else of}
        runs.append(run)
    return Variant(label, None, runs)


def win(metric: str, *found: Variant) -> winners.Win:
    return next(each for each in winners.winners(found) if each.metric.name == metric)


def test_a_known_winner_with_its_interval() -> None:
    slow = made("slow", *({"p99_ttft_ms": value} for value in (199.0, 200.0, 201.0)))
    found = win("p99_ttft_ms", slow, made("fast", {}, {}, {}))
    assert found.first.label == "fast" and found.next is not None and found.next.other is slow and not found.level
    assert found.cells() == ("fast 100 ms", "", "", "slow 200 ms", "100 % more (98 to 102 %)")
    many = win("output_throughput", made("few", *[{"output_throughput": 100.0}] * 2), made("many", {}, {}))
    assert many.cells()[4] == "90 % less (90 to 90 %)"
    times = win("p99_ttft_ms", made("a", *[{"p99_ttft_ms": 1240.0}] * 2), made("b", {}, {}))
    assert times.cells()[4] == "12 times (12 to 12 times)"


def test_level_is_not_the_same_as_not_decided() -> None:
    level = made("level", *({"p99_ttft_ms": value} for value in (101.0, 101.0, 101.5)))
    wide = made("wide", *({"p99_ttft_ms": value} for value in (80.0, 130.0, 3000.0)))
    worse = made("worse", *[{"p99_ttft_ms": 400.0}] * 3)
    best = made("best", {}, {}, {})
    found = win("p99_ttft_ms", worse, level, best, wide)
    assert found.first is best and [each.other for each in found.level] == [level]
    assert [each.other for each in found.undecided] == [wide] and found.next is not None and found.next.other is worse
    assert found.cells()[1] == "level" and found.cells()[2].startswith("wide 1.07 s (0.0")
    assert found.brief()[1] == ["level", "wide?"] and winners.LEVEL in winners.heading([best, worse])
    note = next(text for text in winners.notes([best, wide]) if text.startswith("Not decided (TTFT p99)"))
    assert "replications would decide" in note
    alone = win("p99_ttft_ms", level, best)
    assert alone.next is None and alone.cells()[3:] == ("", "") and alone.why == ""


def test_one_replication_has_no_interval() -> None:
    both = [made("a", {}), made("b", {"p99_ttft_ms": 150.0})]
    assert win("p99_ttft_ms", *both).cells() == ("a 100 ms", "", "", "b 150 ms", "50 % more")
    assert "no intervals" in winners.heading(both)
    assert win("mean_e2el_ms", *both).next is None  # equal
    assert winners.winners(both[:1]) == [] and winners.markdown(both[:1], "x") == ""


def test_a_portrait_has_the_time_split_and_the_engine() -> None:
    queued = {"mean_queue_ms": 3000.0, "mean_waiting": 40.0, "max_kv_usage": 1.0, "prefix_cache_hit_rate": 0.1}
    found = [made("b", queued, lost=5), made("a", {"mean_queue_ms": 1e6})]
    text, almost_all = winners.portraits(found)
    assert text.startswith(
        "b: a request takes 3.98 s, 75 % of it waiting in the queue (generating tokens 900 ms); mean"
    )
    assert "mean batch 10.0 of at most 32, steps of 10.0 ms, 40 wait on average, KV 20 % in use, full at times" in text
    assert text.endswith(
        "10 % of the prompts' tokens found in the cache. It refused 5 of 100 requests that others served."
    )
    assert "over 99 % of it waiting" in almost_all


def test_a_limit_of_tpot_that_binds_nobody_is_told() -> None:
    """Tokens that come together have no time between them."""
    whole = {"streamed": False, "median_tpot_ms": None, "p99_tpot_ms": None}
    found = [made("static", whole), made("vllm", {})]
    told = "static delivers a request's tokens together: without TPOT, it keeps any limit of it."
    assert winners.notes(found) == [told]
    for run in found[0].runs:
        run.scenario["slo"] = {"ttft_ms": 500}
    assert winners.notes(found) == []
    for run in found[0].runs:
        run.scenario["workload"]["classes"] = {"chat": {"slo": {"tpot_ms": 50}}}
    assert winners.notes(found) == [told]


def test_the_report_has_it_and_a_text_beside_it(tmp_path: Path) -> None:
    for policy, seats in (("vllm", 32), ("static", 8)):
        write(tmp_path / "cmp" / policy, serve(requests=60, policy=policy, max_num_seqs=seats), policy=policy)
    written = compare.write_report([tmp_path / "cmp"], tmp_path / "r.html")
    text = (tmp_path / "r-winners.md").read_text()
    assert tmp_path / "r-winners.md" in written and "| p99" not in text and "| TTFT p99 | vllm " in text
    assert "Who wins, and why" in (tmp_path / "r.html").read_text()
    assert compare.winners([tmp_path / "cmp"]) is None  # the table of two says it


def test_all_means_every_label_and_every_other_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "x.yaml"
    scenario.write_text(
        "model: llama-3.1-8b\ngpu: h100_sxm\nengine: {max_model_len: 100000}\npolicies: {mine: vllm, orca: orca}\n"
        "workload: {num_requests: 3, arrivals: batch, prompt_tokens: 20, output_tokens: 5}\n"
    )
    assert main(["compare", str(scenario), "--policies", "all", "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    ran = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert ran == {"mine", "orca", "naive", "sarathi", "sglang", "tgi", "trtllm", "vllm_v0"}
    told = capsys.readouterr()
    assert (
        all(f"warning: {name} is left out: " in told.err for name in ("static", "triton_dynamic"))
        and "best" in told.out
    )
