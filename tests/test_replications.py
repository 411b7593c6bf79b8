"""Many simulations at a time: the same bytes however many, and what replications say of each other."""

import html
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from analysis import winners
from analysis.commands import commands
from analysis.compare import PAIRED, comparison, paired, told
from analysis.headline import headline, verdicts
from analysis.load import Run, find
from analysis.report import write_report
from analysis.variants import Variant, variants
from sim import from_mapping, results
from sim.cli import main
from sim.parallel import run_all
from tests.fakeresults import serve, write

SCENARIO = """
name: many
model: llama-3.1-8b
gpu: h100_sxm
policies: {static: {name: static, batch_size: 8}, vllm: vllm}
engine: {max_model_len: 2048}
workload:
  num_requests: 60
  arrivals: {name: poisson, rate_per_s: 8}
  prompt_tokens: {name: lognormal, mean: 200, cv: 1, max: 1000}
  output_tokens: {name: uniform, min: 10, max: 60}
cost: {name: roofline, calibration: ideal, noise: {sigma: 0.1}}
slo: {ttft_ms: 500}
seed: 3
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "many.yaml"
    path.write_text(SCENARIO)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All that may not differ between two equal runs."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_bytes_do_not_depend_on_the_number_of_processes(scenario: Path, tmp_path: Path) -> None:
    for jobs in ("1", "3"):
        command = ["compare", str(scenario), "--rates", "4,16", "--replications", "2", "--jobs", jobs]
        assert main([*command, "--out", str(tmp_path / jobs)]) == 0
    one, three = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert one == three and "vllm-16/rep-1/steps.parquet" in one and "paired.csv" in one
    first, second = (json.loads(one[f"vllm-16/rep-{k}/summary.json"]) for k in (0, 1))
    assert (first["seed"], first["replication"], second["replication"]) == (3, 0, 1)
    assert first["mean_ttft_ms"] != second["mean_ttft_ms"]
    assert one["vllm-16/rep-0/scenario.yaml"] == one["vllm-16/rep-1/scenario.yaml"]


def test_replication_0_is_the_plain_run(scenario: Path, tmp_path: Path) -> None:
    assert main(["run", str(scenario), "--out", str(tmp_path / "plain")]) == 0
    assert main(["run", str(scenario), "--replications", "2", "--jobs", "1", "--out", str(tmp_path / "two")]) == 0
    for name in ("requests.parquet", "spans.parquet", "steps.parquet", "summary.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "two" / "rep-0" / name).read_bytes()


def test_a_run_prints_intervals_and_its_verdict(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(scenario), "--replications", "3", "--jobs", "1", "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "over 3 replications, with 95 % confidence intervals:" in text
    assert re.search(r"p99 TTFT, ms +[\d.,]+ +[\d.,]+ to [\d.,]+", text)
    assert "stable: " in text or "above capacity: " in text
    assert "p99 of only 60 requests" in text


def test_replications_that_draw_nothing_are_said_to_be_equal(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SCENARIO.replace("{name: poisson, rate_per_s: 8}", "{name: constant, rate_per_s: 8}")
    text = text.replace("{name: lognormal, mean: 200, cv: 1, max: 1000}", "200").replace(", noise: {sigma: 0.1}", "")
    (tmp_path / "same.yaml").write_text(text.replace("{name: uniform, min: 10, max: 60}", "20"))
    command = ["--replications", "2", "--jobs", "1", "--out", str(tmp_path / "r")]
    assert main(["run", str(tmp_path / "same.yaml"), *command]) == 0
    assert capsys.readouterr().err == (
        "warning: all 2 replications are equal: nothing in the scenario is drawn at random\n"
    )
    assert main(["run", str(scenario), *command]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_starts_without_pandas_matplotlib_and_joblib(scenario: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from sim.cli import main; "
        f"main(['run', {str(scenario)!r}, '--out', {str(tmp_path / 'r')!r}]); "
        "print(sorted({'pandas', 'matplotlib', 'joblib', 'analysis'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("option", ["--replications", "--jobs"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_a_bad_number_is_refused(scenario: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(scenario), f"{option}={value}"]) == 2
    assert capsys.readouterr().err == f"{option}: {value!r} must be a whole number from 1 to 10,000\n"


def test_what_fails_in_a_process_comes_back(tmp_path: Path) -> None:
    made = from_mapping({**__import__("yaml").safe_load(SCENARIO), "replications": 2})
    jobs = results.jobs(made, tmp_path / "r")
    jobs[1].folder.rmdir()
    with pytest.raises(FileNotFoundError):
        run_all(jobs, 2)


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three replications of two policies at 10 requests/s, on the same arrivals."""
    top = tmp_path_factory.mktemp("pairs")
    for policy in ("static", "vllm"):
        for seed in range(3):
            folder = write(top / policy / f"rep-{seed}", serve(requests=60, policy=policy, seed=seed), policy=policy)
            summary = json.loads((folder / "summary.json").read_text()) | {"replication": seed}
            (folder / "summary.json").write_text(json.dumps(summary))
    return top


def test_differences_are_of_like_replications(three: Path) -> None:
    found = paired([three])
    assert tuple(found.columns) == PAIRED
    row = found[found["metric"] == "p99_ttft_ms"].iloc[0]
    assert (row["policy_a"], row["policy_b"], row["rate_per_s"]) == ("static", "vllm", 8.0)
    a, b = ({run.summary["replication"]: run.summary["p99_ttft_ms"] for run in v.runs} for v in variants(find([three])))
    each = [a[k] - b[k] for k in range(3)]
    assert row["difference"] == pytest.approx(sum(each) / 3)
    spread = pd.Series(each).std() / 3**0.5 * 4.302653  # Student's t of two degrees of freedom
    assert row["ci_low"] == pytest.approx(row["difference"] - spread, rel=1e-6)
    assert row["ci_high"] == pytest.approx(row["difference"] + spread, rel=1e-6)
    logs = [math.log(a[k] / b[k]) for k in range(3)]
    assert row["ratio"] == pytest.approx(math.exp(sum(logs) / 3))
    assert row["ratio_low"] == pytest.approx(row["ratio"] * math.exp(-4.302653 * pd.Series(logs).std() / 3**0.5))
    assert not set(found["metric"]) & {"policy", "verdict", "streamed", "note", "rate_per_s"}


def test_one_replication_has_a_difference_and_no_interval(tmp_path: Path) -> None:
    for policy in ("static", "vllm"):
        write(tmp_path / policy, serve(requests=40, policy=policy), policy=policy)
    found = paired([tmp_path])
    assert len(found) and found[["ci_low", "ci_high"]].isna().all(axis=None) and found["difference"].notna().all()
    both = variants(find([tmp_path]))
    assert winners.sentences(both) == winners.notes(both)
    assert not any(win.name in text for win in winners.winners(both) for text in winners.sentences(both))


def test_other_arrivals_are_not_paired(tmp_path: Path) -> None:
    for seed, policy in enumerate(("static", "vllm")):
        write(tmp_path / policy, serve(requests=40, policy=policy, seed=seed), policy=policy, seed=seed)
    assert len(paired([tmp_path])) == 0


def test_the_sentences_follow_from_the_numbers(three: Path) -> None:
    lines = told([three])
    assert lines[0].startswith("vllm wins on goodput: it serves") and "TTFT ≤ 500 ms and TPOT ≤ 50 ms" in lines[0]
    sentence = next(line for line in lines if line.startswith("TTFT p99: vllm "))
    matched = re.search(r", static [\d.,]+ m?s: ([\d.,]+) times \(([\d.,]+) to ([\d.,]+) times\)\.$", sentence)
    assert matched, sentence
    row = paired([three]).set_index("metric").loc["p99_ttft_ms"]  # static's by vllm's
    assert [float(each) for each in matched.groups()] == pytest.approx(
        [row["ratio"], row["ratio_low"], row["ratio_high"]], rel=0.05
    )


def test_what_cannot_be_told_apart_is_not_called_better(tmp_path: Path) -> None:
    for policy, order in (("a", (0, 1, 2)), ("b", (1, 2, 0))):
        for replication, seed in enumerate(order):
            folder = write(tmp_path / policy / f"rep-{replication}", serve(requests=60, seed=seed), policy=policy)
            summary = json.loads((folder / "summary.json").read_text()) | {"replication": replication}
            (folder / "summary.json").write_text(json.dumps(summary))
    lines = told([tmp_path])
    assert "3 replications do not decide between" in lines[0] and " wins" not in lines[0], lines[0]
    assert any(line.startswith("TTFT p99: ") and "3 replications do not decide it" in line for line in lines)
    assert not any("% more" in line or "% less" in line for line in lines)


# --- the first sentence -----------------------------------------------------------------------------------------------


def of(*each: tuple[str, float | None, dict[str, object]], slo: bool = True) -> list[Variant]:
    limits = {"ttft_ms": 500.0} if slo else {}
    made = []
    for label, rate, summary in each:
        run = Run(Path("x"), {"slo": limits}, {"finished": 9, **summary}, {})
        run.__dict__["requests"] = pd.DataFrame(columns=["request_id", "status", "prompt_tokens", "output_tokens"])
        made.append(Variant(label, rate, [run]))
    return made


def test_the_first_sentence_names_winner_measure_size_and_slo() -> None:
    good = [("a", 4.0, {"request_goodput": 3.9}), ("b", 4.0, {"request_goodput": 2.0})]
    good += [("a", 8.0, {"request_goodput": 6.0}), ("b", 8.0, {"request_goodput": 0.5})]
    assert headline(of(*good)) == (
        "a wins on goodput: it serves 6.00 requests/s within the SLO of TTFT ≤ 500 ms (at 8 requests/s), "
        "3 times as many as b (2.00)."
    )
    near = of(("a", 4.0, {"request_goodput": 4.0}), ("b", 4.0, {"request_goodput": 3.2}))
    assert "25 % more than b (3.20)" in headline(near)
    none = of(("a", 4.0, {"request_goodput": 4.0}), ("b", 4.0, {"request_goodput": 0.0}))
    assert headline(none).endswith(", b none.")


def test_where_all_keep_the_slo_latency_decides() -> None:
    alike = {"request_goodput": 4.0, "slo_attainment": 1.0}
    found = of(("a", 4.0, alike | {"p99_ttft_ms": 120.0}), ("b", 4.0, alike | {"p99_ttft_ms": 1400.0}))
    assert headline(found) == (
        "All keep the SLO of TTFT ≤ 500 ms alike; by p99 TTFT a wins: 120 ms against b's 1.40 s."
    )


def test_a_tie_at_the_best_rate_is_broken_there() -> None:
    found = [("a", 4.0, {"request_goodput": 4.0, "p99_ttft_ms": 9.0}), ("b", 4.0, {"request_goodput": 4.0})]
    found += [("a", 8.0, {"request_goodput": 7.6, "p99_ttft_ms": 30.0})]
    found += [("b", 8.0, {"request_goodput": 7.7, "p99_ttft_ms": 40.0}), ("c", 8.0, {"request_goodput": 1.0})]
    found += [("a", 16.0, {"request_goodput": 2.0}), ("b", 16.0, {"request_goodput": 0.1})]
    assert headline(of(*found)) == (
        "a and b are level in goodput, the best at 8 requests/s with 7.70 requests/s within the SLO of TTFT ≤ 500 ms; "
        "by p99 TTFT a wins: 30.0 ms against b's 40.0 ms."
    )


def test_without_an_slo_throughput_decides_then_latency() -> None:
    fast = of(("a", 4.0, {"output_throughput": 900.0}), ("b", 4.0, {"output_throughput": 300.0}), slo=False)
    assert headline(fast) == "No SLO is given; by output throughput a wins: 900 tokens/s against b's 300."
    same = {"output_throughput": 900.0}
    found = of(("a", 4.0, same | {"p99_ttft_ms": 80.0}), ("b", 4.0, same | {"p99_ttft_ms": 70.0}), slo=False)
    assert headline(found) == "No SLO is given; by p99 TTFT b wins: 70.0 ms against a's 80.0 ms."


def test_one_policy_and_none_that_served() -> None:
    kept = [("a", 4.0, {"request_goodput": 4.0, "slo_attainment": 1.0})]
    kept += [("a", 8.0, {"request_goodput": 1.0, "slo_attainment": 0.1})]
    assert headline(of(*kept)) == "a keeps the SLO of TTFT ≤ 500 ms for 99 % of the requests up to 4 requests/s."
    assert headline(of(("a", 4.0, {"finished": 0}))) == "No request finished, so there is nothing to compare."


def test_verdicts_are_told_where_there_is_something_to_tell() -> None:
    stable = {"verdict": "stable", "verdict_evidence": "none waited"}
    above = {"verdict": "above capacity", "verdict_evidence": "90 waited"}
    assert verdicts(of(("a", 4.0, stable), ("b", 4.0, stable))) == ["Every run is stable: no queue grew to the end."]
    assert verdicts(of(("a", 4.0, stable), ("a", 8.0, above))) == ["a at 8 requests/s: above capacity. 90 waited."]


# --- marks and commands -----------------------------------------------------------------------------------------------


def test_a_p99_of_few_values_is_marked(three: Path) -> None:
    variant = variants(find([three]))[1]
    assert variant.few("p99_ttft_ms") and not variant.few("median_ttft_ms")
    assert not variant.few("p99_itl_ms")  # there are thousands of gaps between tokens
    variant.runs[0].summary["measured"] = 1000
    assert variant.few("p99_ttft_ms")  # the other replications' still rest on 60
    assert comparison([three])["replications"].eq(3).all()


def test_commands_say_what_to_type_on_real_gpus(scenario: Path, tmp_path: Path) -> None:
    options = ["--set", "engine.tensor_parallel_size=2", "--set", "replicas=2", "--jobs", "1", "--rates", "4,8"]
    assert main(["compare", str(scenario), *options, "--out", str(tmp_path / "c")]) == 0
    serve_text, bench = commands(variants(find([tmp_path / "c"])))
    for word in (
        "vllm serve meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 2 --data-parallel-size 2",
        "--max-model-len 2048",
        "--enable-prefix-caching",
        "--max-num-batched-tokens 8192",
    ):
        assert word in serve_text.replace("\\\n    ", "")
    assert serve_text.startswith("# vllm\n")  # the static policy is none of vLLM's
    flat = bench.replace("\\\n      ", "")
    assert "for rate in 4 8; do" in flat and "--request-rate $rate" in flat and "--goodput ttft:500" in flat
    assert "--num-prompts 60" in flat and "--random-" not in flat  # lognormal prompts
    assert "--dataset-name timed_trace --dataset-path requests.jsonl --timed-trace-chunk-hash-size 512" in flat
    assert "--self-timed" not in flat
    assert subprocess.run(["bash", "-n"], input=f"{serve_text}\n{bench}", text=True, check=False).returncode == 0


def test_uniform_lengths_are_random_prompts(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, {"name": "poisson", "rate_per_s": 8}, prompt={"name": "uniform", "min": 50, "max": 150})
    assert "--dataset-name random --random-input-len 100 --random-output-len 35" in bench
    assert '--random-range-ratio \'{"input": 0.5, "output": 0.7143}\'' in bench


def test_the_requests_are_written_beside_the_report(tmp_path: Path) -> None:
    """Every law and every arrival process, as the data set that vLLM's benchmark replays with their times."""
    arrivals = {"name": "piecewise", "points": [[0, 4], [5, 20]]}
    bench = bench_of(tmp_path, arrivals, prefix={"tokens": 40})
    assert "--dataset-path report-requests.jsonl --timed-trace-chunk-hash-size 16" in bench
    assert "--timed-trace-sec-multiplier 1" in bench and "--self-timed" in bench and "--request-rate" not in bench
    rows = [json.loads(line) for line in (tmp_path / "report-requests.jsonl").read_text().splitlines()]
    requests = pq.read_table(tmp_path / "r" / "requests.parquet").to_pylist()
    assert [row["input_length"] for row in rows] == [each["prompt_tokens"] for each in requests]
    assert [row["output_length"] for row in rows] == [each["output_tokens"] for each in requests]
    times = np.array([each["arrival_s"] for each in requests])
    assert [row["timestamp"] for row in rows] == pytest.approx(times - times[0], abs=1e-6)
    assert all(16 * (len(row["hash_ids"]) - 1) < row["input_length"] <= 16 * len(row["hash_ids"]) for row in rows)
    assert all(row["hash_ids"][:2] == [0, 1][: len(row["hash_ids"])] for row in rows)  # 40 tokens: two whole blocks
    rest = [each for row in rows for each in row["hash_ids"][2:]]
    assert len(rest) == len(set(rest)) and not {0, 1} & set(rest)


def test_several_rates_of_a_trace_are_several_scales(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    arrivals = {"name": "piecewise", "points": [[0, 4], [5, 20]]}
    path.write_text(SCENARIO.replace("{name: poisson, rate_per_s: 8}", json.dumps(arrivals)))
    options = ["--policies", "vllm", "--rates", "4,8", "--jobs", "1"]
    assert main(["compare", str(path), *options, "--out", str(tmp_path / "c")]) == 0
    bench = commands(variants(find([tmp_path / "c"])))[-1]
    assert "for scale in 1 0.5; do" in bench and "--timed-trace-sec-multiplier $scale" in bench


def bench_of(folder: Path, arrivals: dict[str, object], prompt: object = None, prefix: object = None) -> str:
    """The benchmark's command in the report of a run, options in one line."""
    data = yaml.safe_load(SCENARIO)
    data["workload"]["arrivals"] = arrivals
    data["workload"] |= {"prompt_tokens": prompt} if prompt else {}
    data["workload"] |= {"prefix": prefix} if prefix else {}
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    assert main(["run", str(folder / "s.yaml"), "--policy", "vllm", "--out", str(folder / "r")]) == 0
    write_report([folder / "r"], folder / "report.html")
    text = html.unescape((folder / "report.html").read_text())
    return text[text.index("vllm bench serve") :].replace(" \\\n    ", " ")


@pytest.mark.parametrize(
    "arrivals, words",
    [
        ({"name": "closed_loop", "concurrency": 8}, "--request-rate inf --max-concurrency 8"),
        ({"name": "batch"}, "--request-rate inf"),
        ({"name": "gamma", "rate_per_s": 8, "burstiness": 0.5}, "--request-rate 8 --burstiness 0.5"),
        ({"name": "constant", "rate_per_s": 8}, "--request-rate 8 --burstiness 1000000"),
    ],
)
def test_arrivals_become_options(
    arrivals: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO.replace("{name: poisson, rate_per_s: 8}", json.dumps(arrivals)))
    assert main(["run", str(path), "--policy", "vllm", "--out", str(tmp_path / "r")]) == 0
    bench = commands(variants(find([tmp_path / "r"])))[-1]
    assert words in bench.replace(" \\\n    ", " ")
