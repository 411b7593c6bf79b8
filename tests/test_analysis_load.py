"""Result folders are found, told apart and grouped; what is broken is named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.catalog import best_of, key_metrics, shown_in, text_of
from analysis.facts import facts, title
from analysis.load import FILES, ResultError, Run, find, read
from analysis.stats import MOST_POINTS, binned_mean, ecdf
from analysis.variants import variants
from sim import mean_interval, student_t
from tests.fakeresults import Tables, scenario, serve, write


@pytest.fixture(scope="module")
def toy() -> Tables:
    return serve(requests=60)


@pytest.fixture
def compared(tmp_path: Path, toy: Tables) -> Path:
    """A folder as `compare` writes it: two policies at two rates."""
    for policy in ("vllm", "static"):
        for rate in (10.0, 2.0):
            write(tmp_path / "cmp" / f"{policy}-{rate:g}", toy, policy=policy, rate_per_s=rate)
    (tmp_path / "cmp" / "comparison.csv").write_text("policy\n")
    return tmp_path / "cmp"


def test_a_result_folder_is_read(tmp_path: Path, toy: Tables) -> None:
    run = read(write(tmp_path / "run", toy, rate_per_s=4.0))
    assert (run.policy, run.rate_per_s, run.note) == ("vllm", 4.0, "")
    ttft, weights = run.distribution("ttft")
    assert len(ttft) == 60 and weights.sum() == 60
    assert ttft.mean() == pytest.approx(run.summary["mean_ttft_ms"])
    gaps, counts = run.distribution("itl")
    assert np.average(gaps, weights=counts) == pytest.approx(run.summary["mean_itl_ms"])
    tpot, _ = run.distribution("tpot")
    assert np.percentile(tpot, 99) == pytest.approx(run.summary["p99_tpot_ms"])
    (variant,) = variants([run])
    parts_ms = [1000 * (value or 0.0) for value in variant.parts_s().values()]
    assert sum(parts_ms) == pytest.approx(run.summary["mean_e2el_ms"])
    assert list(run.steps["step"]) == list(range(len(run.steps)))


def test_unstreamed_runs_have_no_latencies_between_tokens(tmp_path: Path) -> None:
    run = read(write(tmp_path / "run", serve(requests=40, policy="static"), policy="static"))
    assert len(run.distribution("ttft")[0]) == 40
    assert not len(run.distribution("tpot")[0]) and not len(run.distribution("itl")[0])


def test_warmup_is_cut_from_latencies(tmp_path: Path, toy: Tables) -> None:
    run = read(write(tmp_path / "run", toy))
    run.summary["warmup_s"] = 3.0
    late = (toy.requests.column("arrival_s").to_numpy() >= 3.0).sum()
    assert 0 < len(run.distribution("ttft")[0]) == late < 60


def test_a_compare_folder_gives_its_runs_by_policy_and_rate(compared: Path) -> None:
    found = variants(find([compared]))
    assert [(each.label, each.rate_per_s) for each in found] == [
        ("static", 2.0),
        ("static", 10.0),
        ("vllm", 2.0),
        ("vllm", 10.0),
    ]


def test_policies_stand_in_the_order_of_the_scenario(compared: Path) -> None:
    runs = find([compared])
    for run in runs:
        run.scenario["policies"] = {"vllm": {}, "static": {}}
    assert [each.label for each in variants(runs)] == ["vllm", "vllm", "static", "static"]


def test_replications_are_one_variant(tmp_path: Path) -> None:
    for k in (0, 1, 2, 10):
        write(tmp_path / "cmp" / "vllm" / f"rep-{k}", serve(requests=30, seed=k))
    (found,) = variants(find([tmp_path / "cmp"]))
    assert [run.folder.name for run in found.runs] == ["rep-0", "rep-1", "rep-2", "rep-10"]
    assert len(found.distribution("ttft")[0]) == 120
    mean = np.mean([run.summary["mean_ttft_ms"] for run in found.runs])
    assert found.value("mean_ttft_ms") == pytest.approx(mean)


def test_like_runs_from_two_folders_are_told_apart(tmp_path: Path, toy: Tables) -> None:
    folders = [write(tmp_path / name / "out", toy) for name in ("before", "after")]
    assert [each.label for each in variants(find(folders))] == ["vllm (before/out)", "vllm (after/out)"]
    assert len(find([folders[0], folders[0], folders[0].parent])) == 1  # the same folder twice is one run


def test_without_labels_the_scenario_says_what_ran(tmp_path: Path, toy: Tables) -> None:
    run = read(write(tmp_path / "run", toy, rate_per_s=4.0))
    del run.summary["policy"], run.summary["rate_per_s"]
    assert (run.policy, run.rate_per_s) == ("vllm", 4.0)
    bare = Run(tmp_path / "some", {}, {}, {})
    assert (bare.policy, bare.rate_per_s) == ("some", None)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, toy: Tables, name: str) -> None:
    folder = write(tmp_path / "cmp" / "run", toy)
    (folder / name).unlink()
    with pytest.raises(ResultError, match=f"run: {name} is missing"):
        find([tmp_path / "cmp"])


@pytest.mark.parametrize("name", ["summary.json", "scenario.yaml", "run.json"])
@pytest.mark.parametrize("text", ["{", "- [", "[1]"])
def test_a_broken_text_is_named(tmp_path: Path, toy: Tables, name: str, text: str) -> None:
    folder = write(tmp_path / "run", toy)
    (folder / name).write_text(text)
    with pytest.raises(ResultError, match=f"run: {name}") as caught:
        find([folder])
    assert "\n" not in str(caught.value)


def test_a_broken_table_is_named(tmp_path: Path, toy: Tables) -> None:
    run = read(write(tmp_path / "run", toy))
    (run.folder / "steps.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ResultError, match=r"run: steps\.parquet cannot be read"):
        _ = run.steps
    pq.write_table(pa.table({"engine": [0]}), run.folder / "steps.parquet")
    with pytest.raises(ResultError, match=r"run: steps.parquet has no column lane, step"):
        _ = run.steps


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="nowhere: no such folder"):
        find([tmp_path / "nowhere"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="file: not a folder"):
        find([tmp_path / "file"])
    with pytest.raises(ResultError, match=r"holds no result .*scenario.yaml, summary.json"):
        find([tmp_path])


def test_facts_of_a_scenario(compared: Path) -> None:
    told = dict(facts(find([compared])))
    assert told["Model"] == "llama-3.1-8b" and told["GPUs"] == "1 × h100_sxm"
    assert told["Traffic"] == "Poisson, 2, 10 requests/s"
    assert told["Lengths"] == "lognormal 330 (cv 0.9) prompt, lognormal 75 (cv 0.9) output tokens"
    assert told["SLO"] == "TTFT ≤ 500 ms, TPOT ≤ 50 ms"
    assert told["Requests"] == "60 in each run" and told["Seed"] == "1"
    assert told["Simulated with"] == "servesim 0.1.0"
    assert title(find([compared])) == "chatbot"


def test_facts_of_other_shapes() -> None:
    base = scenario("vllm", 8.0, {}, 1, "big", "h100_sxm")
    base["cluster"]["pools"]["main"] |= {"replicas": 4, "engine": {"tensor_parallel_size": 2}}
    base["workload"] = {"arrivals": {"name": "trace", "file": "traces/azure.csv", "rate_scale": 2.0}}
    told = dict(facts([Run(Path("x"), base, {"kv_tokens": 1000, "requests": 5}, {})]))
    assert told["GPUs"] == "8 × h100_sxm (4 replicas, tensor parallel 2)"
    assert told["Traffic"] == "trace azure.csv, rate scale 2" and told["Lengths"] == "from the trace"
    assert told["KV cache"] == "1,000 tokens a replica" and "SLO" not in told
    base["workload"] = {
        "arrivals": {"name": "closed_loop", "concurrency": 32, "think_time_s": 1.5},
        "classes": {
            "a": {"prompt_tokens": {"name": "fixed", "tokens": 100}, "output_tokens": 20},
            "b": {
                "prompt_tokens": {"name": "uniform", "min": 1, "max": 9},
                "output_tokens": {"name": "normal", "mean": 7},
            },
        },
    }
    told = dict(facts([Run(Path("x"), base, {}, {})]))
    assert told["Traffic"] == "Closed loop, concurrency 32, think time 1.5 s"
    assert told["Lengths"] == "a: 100 prompt, 20 output tokens; b: uniform 1 to 9 prompt, normal 7 output tokens"


def test_ecdf_keeps_the_ends_and_the_shares() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.lognormal(size=20_000), rng.integers(0, 5, 20_000)
    x, share = ecdf(values, weights)
    assert len(x) <= MOST_POINTS and share[-1] == 1.0 and x[-1] == values[weights > 0].max()
    expanded = np.sort(np.repeat(values, weights))
    exact = np.searchsorted(expanded, x, side="right") / len(expanded)
    np.testing.assert_allclose(share, exact, atol=1e-12)
    small, shares = ecdf(np.array([3.0, 1.0, 2.0]))
    assert small.tolist() == [1.0, 2.0, 3.0] and shares.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert len(ecdf(np.empty(0))[0]) == 0


def test_binned_mean_is_the_time_average() -> None:
    start, end, value = np.array([0.0, 2.0, 3.0]), np.array([1.0, 3.0, 6.0]), np.array([4.0, 2.0, 1.0])
    found = binned_mean(start, end, value, np.array([0.0, 2.0, 4.0, 8.0]))
    assert found.tolist() == pytest.approx([4 / 2, (2 + 1) / 2, 2 / 4])
    assert binned_mean(start[:0], end[:0], value[:0], np.array([0.0, 1.0])).tolist() == [0.0]


def test_intervals_are_students() -> None:
    # quantiles as printed in any table of Student's t
    for level, degrees, t in ((0.95, 1, 12.706), (0.95, 9, 2.262), (0.99, 4, 4.604), (0.95, 1000, 1.962)):
        assert student_t(level, degrees) == pytest.approx(t, abs=5e-4)
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert low is not None and high is not None
    assert (mean, high - mean) == (2.0, pytest.approx(4.3027 / np.sqrt(3), abs=1e-4))
    assert low == pytest.approx(2 * mean - high)
    assert mean_interval([5.0]) == (5.0, None, None)


def test_numbers_are_written_to_be_read() -> None:
    written = [text_of(value) for value in (None, 0.0, 0.01234, 0.5, 1.234, 12.34, 123.4, 12345.6, 100.0)]
    assert written == ["–", "0", "0.0123", "0.500", "1.23", "12.3", "123", "12,346", "100"]
    assert (text_of(2.0), text_of(26, whole=True)) == ("2.00", "26")
    assert shown_in("ms", [5.0, None]) == ("ms", 1.0) and shown_in("ms", [5.0, 30_000.0]) == ("s", 1e-3)
    ttft = next(metric for metric in key_metrics(lambda _: [1.0]) if metric.name == "median_ttft_ms")
    assert best_of(ttft, [3.0, None, 2.0]) == {2}
    assert best_of(ttft, [3.0, None]) == set() and best_of(ttft, [2.0001, 2.0]) == set()
    assert best_of(ttft, [2.0001, 2.0, 9.0]) == {0, 1}  # alike as shown
