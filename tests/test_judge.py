"""Who is better is judged once, on ratios; who did less work than others is not called better."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis import catalog, served
from analysis.compare import cells, divided
from analysis.headline import headline
from analysis.judge import judge
from analysis.winners import OF, notes, sentences, winners
from sim.cli import main
from tests.test_winners import made

TTFT, GOODPUT = OF["p99_ttft_ms"], OF["request_goodput"]


def kind(metric: catalog.Metric, best: tuple[float, ...], other: tuple[float, ...]) -> str:
    both = [made(label, *({metric.name: value} for value in values)) for label, values in (("a", best), ("b", other))]
    return judge(*both, metric).kind


def test_level_behind_and_not_decided() -> None:
    assert kind(TTFT, (100, 100, 100), (101, 100, 101)) == "level"
    assert kind(TTFT, (100, 110, 90), (101, 111, 90.8)) == "level"  # certain, and too small to matter
    assert kind(TTFT, (100, 110, 90), (103.1, 113.2, 93)) == "behind"
    assert kind(TTFT, (100, 110, 90), (100, 130, 80)) == "undecided"
    assert kind(TTFT, (100, 100, 100), (90, 100, 111)) == "undecided"  # near in the mean, wide as a barn
    assert kind(TTFT, (80, 75, 89), (524, 1434, 407)) == "behind"  # multiples: certain on a logarithmic scale
    assert kind(GOODPUT, (20, 20, 20), (19, 11, 19.4)) == "undecided"
    assert kind(GOODPUT, (20, 20, 20), (0, 0.1, 0)) == "behind"  # zeros have no logarithm: by differences
    assert kind(GOODPUT, (4.0, 9.0), (0, 0)) == "behind"  # which would not tell here
    assert kind(GOODPUT, (4.0, 0.0), (0, 0)) == "undecided" and kind(GOODPUT, (0, 0), (0, 0)) == "level"
    assert kind(TTFT, (100,), (101.9,)) == "level" and kind(TTFT, (100,), (103,)) == "behind"


def test_the_interval_is_of_the_ratio_and_says_how_many_would_decide() -> None:
    a, b = (made(label, *({"p99_ttft_ms": v} for v in each)) for label, each in (("a", (80, 90)), ("b", (160, 90))))
    told = judge(a, b, TTFT)
    assert told.ratio == pytest.approx(2**0.5) and told.low == pytest.approx(2**0.5 / told.high * 2**0.5)  # type: ignore[operator]
    assert told.needed is not None and 2 < told.needed < 20
    assert judge(a, a, TTFT).needed is None


def test_other_requests_are_judged_without_pairs() -> None:
    a, b = (made(label, *({"p99_ttft_ms": v} for v in each)) for label, each in (("a", (100, 101)), ("b", (200, 201))))
    for run in b.runs:
        run.scenario["seed"] = 7
    assert judge(a, b, TTFT).kind == "behind" and judge(a, b, TTFT).low is not None


@pytest.mark.parametrize(
    ("goodput", "says"),
    [
        ({"b": (4.0, 4.0, 4.01)}, "a and b are level in goodput"),
        ({"b": (4.0, 1.0, 3.9)}, "a has the highest goodput, but not for certain"),
        ({"b": (3.0, 3.0, 3.1)}, "a wins on goodput"),
        ({"b": (4.0, 1.0, 3.9), "c": (2.0, 2.0, 2.0)}, "c, the first that is behind for certain"),
        ({"b": (4.0, 4.0, 4.0), "c": (4.0, 1.0, 3.9), "d": (1.0, 1.0, 1.0)}, "a and b are level in goodput"),
    ],
)
def test_the_headline_and_the_table_are_of_one_mind(goodput: dict[str, tuple[float, ...]], says: str) -> None:
    values = {"a": (4.02, 4.0, 4.02)} | goodput
    found = [
        made(label, *({"request_goodput": value, "slo_attainment": value / 5} for value in each))
        for label, each in values.items()
    ]
    told, table = headline(found), next(win for win in winners(found) if win.metric is GOODPUT)
    assert says in told
    named = re.search(r"^(.*?) are level in goodput", told)
    level = [table.first.label, *(each.other.label for each in table.level)] if table.level else []
    assert (re.split(", | and ", named[1]) if named else []) == level
    doubted = [each.other.label for each in table.undecided]
    assert all(re.search(rf"do not decide between a and .*{label} \(", told) for label in doubted)
    assert ("do not decide between" in told) == bool(doubted)
    assert (" wins on goodput" in told) == (not level and not doubted)


def test_who_refuses_is_not_compared_in_latencies() -> None:
    fast, whole = {"p99_ttft_ms": 10.0, "request_goodput": 2.0}, made("whole", {}, until=900.0)
    for lost, status, out in ((0, "rejected", False), (1, "rejected", False), (2, "rejected", True)):
        found = [made("less", fast, lost=lost, status=status, until=900.0), whole]
        win = next(each for each in winners(found) if each.metric is TTFT)
        assert (win.first is whole) == out and [one.label for one in win.left_out] == ["less"] * out
    assert any(
        text == "less refused 2 of 100 requests that others served: not compared in latencies." for text in notes(found)
    )
    open_ = served.shortfalls([made("less", fast, lost=4, status="unfinished", until=900.0), whole])
    assert [short.loses for short in open_.values()] == [False, False]
    assert [cells(TTFT, each)[1][0].endswith("*[/bold]") for each in ([made("less", fast), whole], found)] == [
        True,
        False,
    ]
    goodput = next(each for each in winners(found) if each.metric is GOODPUT)
    assert goodput.left_out == () and goodput.next is not None  # a refused request counts there


def test_who_does_nothing_is_behind_for_certain() -> None:
    found = [made("works", *({"request_goodput": value} for value in (3.0, 5.3)))]
    found.append(made("idle", *[{"request_goodput": 0.0}] * 2))
    assert "Goodput: works 4.15 req/s, idle 0 req/s: 100 % less." in sentences(found)
    assert "decide" not in headline(found) and headline(found).endswith(", idle none.")


@pytest.mark.parametrize(("others", "says"), [((101, 100, 130), "About "), ((100, 1, 2000), "Many more ")])
def test_how_many_replications_would_decide(others: tuple[float, ...], says: str) -> None:
    found = [made("a", {}, {}, {}), made("b", *({"p99_ttft_ms": value} for value in others))]
    assert re.search(rf"a difference\. {says}(\d+ )?replications would decide", " ".join(notes(found)))


@pytest.mark.parametrize("until", [None, 900.0])
@pytest.mark.parametrize("name", ["output_throughput", "request_goodput", "request_throughput"])
def test_who_refuses_wins_nothing_by_a_run_that_ends_sooner(name: str, until: float | None) -> None:
    """Unless the window is as long for all."""
    more = {name: 2000.0, "slo_attainment": 0.98}
    whole = [made(label, {name: 1000.0}, {name: 1000.0}, until=until) for label in ("whole", "alike")]
    found = [made("less", more, more, lost=2, until=until), *whole]
    out = until is None
    for win in winners(found):
        if win.metric.name == name:
            assert [one.label for one in win.left_out] == ["less"] * out and (win.first.label == "less") != out
    metric = next(each for each in catalog.KEY if each.name == name)
    assert [cells(metric, found)[1][i].startswith("[bold]") for i in range(3)] == [not out, False, False]
    rest = ", throughput and goodput" * out
    assert notes(found)[0] == f"less refused 4 of 200 requests that others served: not compared in latencies{rest}."
    if name == "request_goodput":
        assert headline(found).startswith("less wins on goodput") != out
        assert ("less is left out" in headline(found)) == out
    share = next(each for each in catalog.KEY if each.name == "slo_attainment")
    assert served.best_of(share, found) == {1, 2}


@pytest.mark.parametrize("until", [None, 900.0])
def test_where_each_lacks_what_another_did_none_is_compared(until: float | None) -> None:
    found = [made(label, {"request_goodput": 5.0}, lost=5, until=until) for label in ("a", "b")]
    for run in found[1].runs:
        run.requests["status"] = run.requests["status"].to_numpy()[::-1]
    told = headline(found)
    assert "none can be compared" in told.lower() and "serves" not in told
    assert all(f"{label} is left out: it refused 5 of" in told for label in "ab")


def test_who_cuts_outputs_short_is_not_compared_at_all() -> None:
    found = [made("cutter", {"request_goodput": 9.0}, cut=30), made("whole", {}), made("other", {})]
    assert all([one.label for one in win.left_out] == ["cutter"] for win in winners(found))
    assert (
        "cutter gave 15 % fewer output tokens than others to the same requests, 30 of them cut short" in notes(found)[0]
    )
    told = headline(found)
    assert "cutter wins" not in told and "cutter is left out: it gave 15 % fewer output tokens" in told


def test_a_winner_that_refuses_says_so_in_the_headline() -> None:
    found = [
        made("less", {"request_goodput": 9.0, "slo_attainment": 0.5}, lost=40, until=900.0),
        made("whole", {}, until=900.0),
    ]
    assert headline(found).endswith("less refused 40 of 100 requests that others served.")
    assert headline(found).startswith("less wins on goodput")


def test_a_real_policy_that_refuses_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "x.yaml"
    scenario.write_text(
        "model: llama-3.1-8b\ngpu: h100_sxm\nengine: {max_model_len: 2048}\nslo: {ttft_ms: 500}\n"
        "policies: {vllm: vllm, tgi: {name: tgi, max_concurrent_requests: 2}, sarathi: sarathi}\n"
        "workload: {num_requests: 60, arrivals: {name: poisson, rate_per_s: 20},"
        " prompt_tokens: 300, output_tokens: 60}\n"
    )
    assert main(["compare", str(scenario), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"^tgi refused \d+ of 60 requests that others served: not compared in latencies, throughput and goodput\.$",
        told,
        re.M,
    )
    table = (tmp_path / "out" / "report-winners.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| metric")]
    assert len(rows) == 10 and not any("tgi" in row for row in rows)
    assert "tgi refused" in table and "tgi refused" in (tmp_path / "out" / "report.html").read_text()


def test_long_names_are_divided_where_they_have_a_mark() -> None:
    names = {"vllm": "vllm", "vllm-watermark": "vllm-\nwatermark", "averyverylongname": "averyverylongname"}
    assert [divided(label) for label in names] == list(names.values())
    assert divided("policies_shared_prefixes") == "policies_\nshared_prefixes"


def test_numbers_have_no_exponents() -> None:
    assert [catalog.short(value) for value in (0.123, 9.94, 9.96, 99.6, 123456.0)] == [
        "0.12",
        "9.9",
        "10",
        "100",
        "123,456",
    ]
    assert [catalog.percent(share) for share in (0.0094, 0.5, 0.9949, 0.996, 1.0)] == [
        "0.94 %",
        "50 %",
        "99 %",
        "over 99 %",
        "100 %",
    ]
