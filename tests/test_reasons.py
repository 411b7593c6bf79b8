"""Why one policy is better: from the requests that make the metric, and never against the difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import causes, winners
from analysis.load import find
from analysis.plots import parts
from analysis.reasons import NONE, why
from analysis.variants import variants
from tests.fakeresults import serve, write
from tests.test_winners import made, steps


def told(metric: str, first: Any, other: Any) -> str:
    return why(metric, first, other)


def test_a_p99_is_explained_by_its_tail_and_not_by_the_mean() -> None:
    """b's mean request waits less than a's, its slowest wait longer; their prompts take long in the mean alone."""
    slow = np.where(np.arange(100) < 96, 0.0, 5.0)
    b = made("b", {"mean_queue_ms": 1.0, "mean_waiting": 2.0}, queue_s=slow, prefill_s=np.where(slow > 0, 0.08, 0.2))
    a = made("a", {"mean_queue_ms": 400.0}, queue_s=0.4)
    text = told("p99_ttft_ms", a, b)
    assert text.startswith(
        "The slowest 2 % of b's requests take 5.08 s (TTFT), 5.00 s of it waiting in the queue; a's 480 ms"
    )
    assert "2 wait on average" in text
    assert told("median_ttft_ms", a, b) == NONE  # the other way round in the middle


def test_ttft_is_never_explained_by_decode_steps() -> None:
    a, b = made("a", {}), made("b", {}, of=steps(plain_ms=300.0), prefill_s=0.3, decode_s=2.7)
    for metric in ("median_ttft_ms", "p99_ttft_ms"):
        text = told(metric, a, b)
        assert "300 ms of it computing the prompt" in text and "decode" not in text and "sequences" not in text


def test_who_decides_early_lets_those_wait_who_come_meanwhile() -> None:
    early = steps()
    early["decided_s"] -= 0.03
    text = told("median_ttft_ms", made("a", {}), made("b", {}, of=early, queue_s=0.05))
    assert "b decides a step 30.0 ms before it starts, a 0 ms" in text
    assert "before it starts" not in told("median_ttft_ms", made("a", {}, of=early), made("b", {}, queue_s=0.05))


def test_prompts_are_explained_by_the_cache_or_by_their_steps() -> None:
    a = made("a", {"prefix_cache_hit_rate": 0.7})
    assert "b finds 10 % of the prompts' tokens in its cache, a 70 %" in told(
        "p99_ttft_ms", a, made("b", {"prefix_cache_hit_rate": 0.1}, prefill_s=0.3)
    )
    text = told("p99_ttft_ms", made("a", {}), made("b", {"prefix_cache_hit_rate": 0.9}, prefill_s=0.3))
    assert "cache" not in text  # it finds more there, so that is not why


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            {"mixed_ms": 200.0},
            "200 ms of it in steps that compute prompts too; a's 100 ms, 0 ms of it. Such steps give 100 %",
        ),
        (
            {"plain_ms": 200.0},
            "200 ms of it in steps that only decode; a's 100 ms, 100 ms of it. Such a step takes 200 ms on",
        ),
        (
            {"alone_ms": 100.0},
            "100 ms of it in steps of prompts alone, in which decodes pause; a's 100 ms, 0 ms of it. They",
        ),
    ],
)
def test_a_slow_pace_is_explained_by_the_steps_it_is_made_of(kind: dict[str, float], says: str) -> None:
    a, b = made("a", {}), made("b", {}, of=steps(**kind), decode_s=1.8)
    assert says in told("p99_tpot_ms", a, b) and says in told("median_tpot_ms", a, b)
    assert says in told("p99_itl_ms", a, b)
    text = told("p99_e2el_ms", a, b)
    assert (
        "1.80 s of it generating tokens; a's 1.00 s, 900 ms of it" in text
        and says.split(" of it ")[1].split(";")[0] in text
    )
    for metric in ("p99_tpot_ms", "p99_itl_ms", "p99_e2el_ms", "mean_e2el_ms"):
        assert told(metric, b, a) == NONE  # it would point the wrong way


def test_preemptions_slow_a_request_down() -> None:
    text = told("p99_tpot_ms", made("a", {}), made("b", {}, preempted_s=0.9))
    assert "100 ms of it preempted; a's 100 ms, 0 ms of it" in text


@pytest.mark.parametrize(("preemptions", "word"), [(5, "preempted"), (0, "queued anew")])
def test_who_preempts_nobody_queues_anew(preemptions: int, word: str) -> None:
    """As tgi does after 1024 outputs: the same column, but the table beside it shows no preemptions."""
    b = made("b", {"preemptions": preemptions, "mean_preempted_ms": 9000.0}, preempted_s=9.0)
    assert f"1.00 s of it {word}; a's 100 ms" in told("p99_tpot_ms", made("a", {}), b)
    assert f"9.00 s of it {word}; a's 1.00 s" in told("mean_e2el_ms", made("a", {}), b)
    (portrait,) = winners.portraits([b])
    assert f"90 % of it {word} (" in portrait
    (portrait,) = winners.portraits([made("b", {"preemptions": preemptions, "mean_preempted_ms": 200.0})])
    assert f", {word} 200 ms)" in portrait


def test_the_picture_of_parts_has_the_same_words() -> None:
    anew, lost, none = ({"preemptions": count, "mean_preempted_ms": ms} for count, ms in ((0, 9.0), (5, 9.0), (0, 0.0)))
    for values, word in (
        ([anew, none], "queued anew"),
        ([lost, none], "preempted"),
        ([anew, lost], "preempted or queued anew"),
    ):
        spent = {one: one.parts_s() for one in (made("x", each) for each in values)}
        assert parts.label("preempted", spent) == word and parts.label("queue", spent) == "waiting in the queue"


def test_goodput_is_explained_by_the_limit_that_is_missed() -> None:
    b = made("b", {"slo_attainment": 0.4}, decode_s=0.09, queue_s=np.where(np.arange(100) < 60, 3.0, 0.0))
    text = told("request_goodput", made("a", {}, decode_s=0.09), b)
    assert text.startswith(
        "40 % of b's requests keep the SLO, 100 % of a's: 60 % and 0 % miss the limit of TTFT. b's requ"
    )
    assert "waiting in the queue" in text and "TPOT" not in text
    text = told("request_goodput", made("a", {}), made("b", {"slo_attainment": 0.4}, lost=60))
    assert text.endswith("60 % and 0 % do not finish.")


def test_goodput_of_who_keeps_more_is_not_explained_by_a_limit() -> None:
    """b keeps the SLO more often and has less goodput all the same: it is slower as a whole."""
    of = {"generated_tokens": 10_000, "total_output_tokens": 10_000, "slo_attainment": 0.95}
    late = np.where(np.arange(100) < 5, 3.0, 0.0)
    b = made("b", of | {"duration": 20.0, "slo_attainment": 1.0}, decode_s=0.09, queue_s=0.3)
    text = told("request_goodput", made("a", of, decode_s=0.09, queue_s=late), b)
    assert text.startswith("100 % of b's requests keep the SLO, 95 % of a's. A step of b takes 20.0 ms, of a 10.0 ms")
    assert "limit" not in text and "waiting" not in text
    assert told("request_goodput", b, made("c", of | {"slo_attainment": 1.0, "duration": 5.0})).endswith(NONE)


def test_throughput_is_explained_by_the_factor_that_differs() -> None:
    of = {"generated_tokens": 10_000, "total_output_tokens": 10_000, "output_throughput": 1000.0}
    a = made("a", of)
    slow = made("b", of | {"duration": 20.0, "output_throughput": 500.0})
    assert (
        told("output_throughput", a, slow)
        == "A step of b takes 20.0 ms, of a 10.0 ms; the last request ends after 20.0 s, 10.0 s."
    )
    few = made("b", of | {"steps": 2000, "duration": 20.0, "output_throughput": 500.0})
    assert told("output_throughput", a, few).startswith("A step of b gives 5.00 tokens, of a 10.0. b: mean batch 10.0")
    idle = made("b", of | {"busy_fraction": 0.5, "duration": 20.0, "output_throughput": 500.0})
    assert told("output_throughput", a, idle) == "b's engines compute 50 % of the time, a's 100 %."
    assert told("output_throughput", a, a) == NONE


@pytest.mark.parametrize("metric", winners.METRICS)
def test_other_calibrations_are_said_for_every_metric(metric: str) -> None:
    a, b = made("a", {"note": "by x"}), made("b", {"note": "by y"}, of=steps(plain_ms=200.0), decode_s=1.8)
    assert told(metric, a, b).endswith("Their steps are priced by different calibrations.")
    assert "calibrations" not in told(metric, a, made("c", {"note": "by x"}))


def test_a_latency_bought_with_throughput_is_told_with_it() -> None:
    a, b = made("a", {"output_throughput": 500.0}), made("b", {}, of=steps(plain_ms=200.0), decode_s=1.8)
    assert told("p99_tpot_ms", a, b).endswith("a gives 500 tok/s, b 1,000.")


def test_parts_add_up_to_the_latency(tmp_path: Any) -> None:
    write(tmp_path / "run", serve(requests=120, max_num_seqs=8))
    (one,) = variants(find([tmp_path]))
    requests: pd.DataFrame = one.first.requests[one.first.requests["measured"]]
    for name, split in (("ttft", causes.request_parts), ("e2el", causes.request_parts), ("tpot", causes.decode_parts)):
        for band, (low, high) in causes.BANDS.items():
            values = requests[f"{name}_ms"].dropna()
            chosen = values[values.between(*values.quantile([low, high]))]
            if name != "ttft" or not one.value("preemptions"):
                assert sum(split(one, name, band).values()) == pytest.approx(chosen.mean(), rel=1e-6)
    assert sum(causes.pause_parts(one, "mean").values()) == pytest.approx(one.value("mean_itl_ms"), rel=0.05)
