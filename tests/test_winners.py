"""Who wins, by how much and why: constructed results with a known winner, a tie, and one replication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import compare, reasons, winners
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


def requests(lost: int = 0, cut: int = 0, status: str = "rejected") -> pd.DataFrame:
    """100 requests of 10 output tokens; the first ones did not finish, the last ones were cut to 5."""
    finished = [number >= lost for number in range(100)]
    tokens = [10 if number < 100 - cut else 5 for number in range(100)]
    ends = {
        "status": ["finished" if done else status for done in finished],
        "output_tokens": tokens,
        "prompt_tokens": 5,
    }
    return pd.DataFrame({"request_id": [f"r{number}" for number in range(100)], **ends})


def made(label: str, *replications: dict[str, Any], **asked: Any) -> Variant:
    """A variant whose replications have these values, the others as usual; `asked` as in `requests`."""
    runs = []
    for number, values in enumerate(replications):
        scenario = {"seed": 1, "workload": {}, "name": "x", "slo": {"ttft_ms": 500, "tpot_ms": 15}}
        run = Run(Path(label), scenario, USUAL | {"policy": label, "replication": number} | values, {})
        steps = {"tick": [0.0, None], "start_s": [0.0, 0.009], "end_s": [0.009, 0.01], "emitted": [10, 1]}
        run.__dict__["steps"] = pd.DataFrame(steps | {"seqs": [10, 1]})
        run.__dict__["requests"] = requests(**asked)
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
    assert found.brief()[1] == "level, wide?" and winners.LEVEL in winners.heading([best, worse])
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


def test_why_is_told_by_the_time_split_and_the_engine() -> None:
    queued = made("b", {"mean_queue_ms": 3000.0, "mean_e2el_ms": 3980.0, "mean_waiting": 40.0, "max_kv_usage": 1.0})
    text = reasons.why("mean_e2el_ms", made("a", {}), queued)
    assert "b spends 3.00 s waiting in the queue, 75 % of its time; of a's 20.0 ms" in text
    assert "mean batch 10.0 of at most 32" in text and "40 wait on average" in text and "full at times" in text
    unlike = made("b", {"prefix_cache_hit_rate": 0.1, "mean_prefill_ms": 200.0})
    text = reasons.why("p99_ttft_ms", made("a", {"prefix_cache_hit_rate": 0.7}), unlike)
    assert "finds 10 % of the prompts' tokens in its cache, a 70 %" in text
    text = reasons.why("p99_tpot_ms", made("a", {"output_throughput": 500.0}), made("b", {}))
    assert "step of 9.00 ms with 10.0 sequences in b" in text and text.endswith("a gives 500 tok/s, b 1,000.")
    text = reasons.why("request_goodput", made("a", {}), made("b", {"slo_attainment": 0.4, "p99_tpot_ms": 20.0}))
    assert text == "40 % of b's requests keep the SLO, 100 % of a's; b has a p99 TPOT of 20.0 ms (limit 15.0 ms)."
    assert "75 % of it waiting in the queue (generating tokens 900 ms)" in reasons.portrait(queued)


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
