"""`calibrate validate`: rows become the scenarios that they describe, and errors are counted where they count."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sim
from calibrate.__main__ import main
from calibrate.validate import names, predict, rows
from calibrate.validate.build import build
from calibrate.validate.names import Skip
from calibrate.validate.reasons import reason
from calibrate.validate.score import Errors, Scored, groups, reported
from sim import models, registry

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "measurements" / "end_to_end.csv"
needs_shared = pytest.mark.skipif(not SHARED.is_file(), reason=f"needs the measurements, {SHARED}")
INFERENCEX = "nominal isl/osl; InferenceX runs draw lengths uniformly in [0.8,1.0] x nominal"
IN_HOUSE = "nominal isl/osl (NVIDIA in-house run)"
SHARED_PREFIX = "shared_prefix system=100 question=447 output=248 ignore_eos"
BASE = {
    "run_id": "run",
    "quality": "A",
    "gpu": "H100 SXM",
    "num_gpus": "1",
    "tp": "1",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "weight_dtype": "bf16",
    "kv_dtype": "bf16",
    "engine": "vllm",
    "engine_version": "0.19.0",
    "mode": "agg",
    "arrival": "closed_loop",
    "concurrency": "1",
    "num_requests": "3",
    "isl_mean": "100",
    "osl_mean": "11",
    "ttft_stat": "mean",
    "tpot_stat": "mean",
}
ONE_OF_X = {"length_dist": INFERENCEX, "num_requests": "", "concurrency": "4", "isl_mean": "200", "osl_mean": "50"}


def table(folder: Path, *changes: dict[str, Any], name: str = "runs.csv") -> Path:
    """A table with a row for each of the changes to `BASE`; runs are named run0, run1 ... unless they say."""
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows.COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, change in enumerate(changes):
            writer.writerow({**BASE, "run_id": f"run{number}", **change})
    return path


def row(folder: Path, **change: Any) -> rows.Row:
    return rows.read(table(folder, {"run_id": "run0", **change}))[0]


def prediction(folder: Path, **change: Any) -> predict.Prediction:
    return predict.predict(predict.job(build(row(folder, **change)), predict.STATED, "ideal", 0))


def validate(path: Path, *options: str | Path) -> int:
    try:
        return main(["validate", str(path), *map(str, options)])
    except SystemExit as left:
        return int(left.code or 0)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def scored(folder: Path, *changes: dict[str, Any], factor: float = 1.0) -> list[Scored]:
    """Rows with a prediction of 100 ms x factor (or per s) for all that is measured."""
    metrics = dict.fromkeys(rows.METRICS, 100.0 * factor)
    found = rows.read(table(folder, *changes))
    return [Scored(build(each), predict.Prediction(each.run_id, predict.STATED, metrics)) for each in found]


def test_a_lone_client_by_closed_form(tmp_path: Path) -> None:
    """Batch 1: each token reads all weights but the input embedding, and the context's keys and values."""
    model = models.parse("llama-3.1-8b")
    read = 2 * (model.num_parameters - model.vocab_size * model.hidden_size)
    contexts = [100 + token for token in range(1, 11)]
    tpot_ms = 1e3 * (read + model.kv_bytes_per_token() * sum(contexts) / 10) / 3.35e12
    found = prediction(tmp_path).metrics
    assert found["tpot_ms"] == pytest.approx(tpot_ms, rel=0.01)
    assert found["e2e_ms"] == pytest.approx(found["ttft_ms"] + 10 * found["tpot_ms"])
    assert found["req_per_s"] == pytest.approx(1e3 / found["e2e_ms"])
    assert found["output_tok_per_s"] == pytest.approx(11e3 / found["e2e_ms"])


CASES: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    # a row, the scenario that it describes, and where its metrics stand in the summary
    "InferenceX": (
        {**ONE_OF_X, "kv_dtype": "", "engine_version": "unstated", "weight_dtype": "fp8", "ttft_stat": "unspecified"},
        """
engine: {weight_dtype: fp8, kv_cache_dtype: bf16, enable_prefix_caching: false, sampler: sort}
policy: {name: vllm, max_num_seqs: 4, max_num_batched_tokens: 8192, async_scheduling: true}
workload:
  num_requests: 40
  ignore_eos: true
  arrivals: {name: closed_loop, concurrency: 4}
  prompt_tokens: {name: uniform, min: 160, max: 200}
  output_tokens: {name: uniform, min: 40, max: 50}
""",
        {"ttft_ms": "mean_ttft_ms", "tpot_ms": "mean_tpot_ms", "e2e_ms": "mean_e2el_ms"},
    ),
    "BLIS": (
        {"run_id": "blis_trainval_1", "engine_version": "0.15.1", "arrival": "constant_rate", "concurrency": "",
         "request_rate_rps": "5", "duration_s": "12", "num_requests": "", "isl_mean": "547.4", "osl_mean": "20",
         "length_dist": SHARED_PREFIX, "max_num_seqs": "128", "max_num_batched_tokens": "2048", "kv_blocks": "4000",
         "prefix_caching": "on", "kv_dtype": "", "weight_dtype": "fp16"},
        """
engine: {kv_cache_dtype: bf16, sampler: sort, num_gpu_blocks_override: 4000}
policy: {name: vllm, max_num_seqs: 128, max_num_batched_tokens: 2048}
workload:
  num_requests: 60
  ignore_eos: true
  arrivals: {name: constant, rate_per_s: 5}
  prompt_tokens: 547
  output_tokens: 20
  prefix: {tokens: 547, groups: 100}
""",
        {"ttft_ms": "mean_ttft_ms", "output_tok_per_s": "output_throughput", "req_per_s": "request_throughput"},
    ),
    "Poisson, medians": (
        {"run_id": "h200_70b_x", "gpu": "H200 SXM", "arrival": "poisson", "concurrency": "", "request_rate_rps": "2",
         "num_requests": "20", "ttft_stat": "p50", "tpot_stat": "p50", "max_num_batched_tokens": "4096",
         "kv_tokens": "160000", "isl_mean": "207", "osl_mean": "198"},
        """
gpu: h200_sxm
engine: {kv_cache_dtype: bf16, enable_prefix_caching: false, num_gpu_blocks_override: 10000}
policy: {name: vllm, max_num_batched_tokens: 4096}
workload:
  num_requests: 20
  ignore_eos: true
  arrivals: {name: poisson, rate_per_s: 2}
  prompt_tokens: {name: lognormal, mean: 207, cv: 1.2, max: 2048}
  output_tokens: {name: lognormal, mean: 198, cv: 1.0, max: 2048}
""",
        {"ttft_ms": "median_ttft_ms", "tpot_ms": "median_tpot_ms"},
    ),
    "an old engine": (
        {"run_id": "vllmci_x", "engine_version": "0.6.x", "arrival": "one batch of 8", "mode": "static_batch",
         "concurrency": "8", "num_requests": "8", "tpot_stat": "mean"},
        """
engine: {max_model_len: 8192, enable_prefix_caching: false}
policy: {name: vllm_v0, max_num_seqs: 256, max_num_batched_tokens: 8192}
workload: {num_requests: 8, ignore_eos: true, arrivals: batch, prompt_tokens: 100, output_tokens: 11}
""",
        {"ttft_ms": "mean_ttft_ms", "tpot_ms": "mean_tpot_ms", "e2e_ms": "mean_e2el_ms"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_row_becomes_the_scenario_that_it_describes(case: str, tmp_path: Path) -> None:
    change, text, places = CASES[case]
    gpu = "" if "gpu:" in text else "gpu: h100_sxm"
    whole = f"model: llama-3.1-8b\n{gpu}\ncost: {{name: roofline, calibration: ideal}}\n{text}"
    summary = sim.simulate(sim.load_text(whole)).summary
    found = prediction(tmp_path, **change)
    assert {name: found.metrics[name] for name in places} == {name: summary[key] for name, key in places.items()}


def test_what_a_source_calls_tpot(tmp_path: Path) -> None:
    """Some divide all of the latency by the output, some the means."""
    change = {"run_id": "vllmci_x", "arrival": "one batch of 8", "mode": "static_batch", "num_requests": "8"}
    whole = prediction(tmp_path, **change, tpot_stat="derived e2e/128").metrics
    assert whole["tpot_ms"] == pytest.approx(whole["e2e_ms"] / 11)
    ratio = prediction(tmp_path, **change, tpot_stat="derived (mean e2e - mean ttft)/(osl-1)").metrics
    assert ratio["tpot_ms"] == pytest.approx((ratio["e2e_ms"] - ratio["ttft_ms"]) / 10)


def test_prompts_that_were_seen_are_hits(tmp_path: Path) -> None:
    change = CASES["BLIS"][0] | {"num_requests": "400"}
    share = prediction(tmp_path, **change).evidence["prefix_cache_hit_rate"]
    assert 0.7 < share < 0.99  # but for the first of each of about 100 prompts, and each one's last block
    assert prediction(tmp_path, **{**change, "prefix_caching": "off"}).evidence["prefix_cache_hit_rate"] == 0


def test_open_dtypes_are_shown_both_ways(tmp_path: Path) -> None:
    def options(**change: str) -> tuple[str, list[str]]:
        plan = build(row(tmp_path, **{**ONE_OF_X, "weight_dtype": "fp8", **change}))
        return plan.scenario["engine"]["kv_cache_dtype"], list(plan.alternatives)

    assert options(kv_dtype="") == ("bf16", ["kv_dtype=fp8"])
    assert options(kv_dtype="", gpu="H200 SXM") == ("fp8", ["kv_dtype=bf16"])
    assert options(kv_dtype="fp8") == ("fp8", [])
    assert options(kv_dtype="bf16", weight_dtype="unstated") == ("bf16", ["weight_dtype=fp8"])
    assert options(kv_dtype="", weight_dtype="bf16", gpu="A100 SXM 80GB") == ("bf16", [])  # it has no fp8


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"gpu": "RTX4090"}, "unknown GPU RTX4090"),
        ({"model": "x/nonsense-7b"}, "unknown model x/nonsense-7b"),
        ({"model": "deepseek-ai/DeepSeek-R1"}, "latent attention"),
        ({"model": "openai/gpt-oss-120b"}, "sliding window"),
        ({"weight_dtype": "fp4"}, "weights in fp4 are not among"),
        ({"kv_dtype": "nvfp4"}, "a KV cache in nvfp4 is not among"),
        ({"weight_dtype": "fp8", "gpu": "A100 SXM 80GB"}, "a100_sxm has no fp8 arithmetic"),
        ({"engine": "tgi"}, "unknown engine tgi"),
        ({"dp": "4"}, "data parallelism over 4 GPUs"),
        ({"pp": "2"}, "pipeline parallelism over 2 GPUs"),
        ({"ep": "8"}, "expert parallelism over 8 GPUs"),
        ({"num_gpus": "8"}, "more GPUs than tensor parallelism uses"),
        ({"isl_mean": ""}, "lengths are not published"),
        ({"concurrency": ""}, "neither its request rate nor its concurrency"),
        ({"arrival": "batch_all_at_once", "num_requests": "", "concurrency": ""}, "how many requests"),
        ({"run_id": "apex_1", "length_dist": "trace file traces/none.csv"}, "its trace traces/none.csv is not there"),
    ],
)
def test_rows_that_cannot_be_simulated_say_why(change: dict[str, str], why: str, tmp_path: Path) -> None:
    with pytest.raises(Skip, match=why):
        build(row(tmp_path, **change))


def test_skipped_rows_are_listed_and_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, {}, {"gpu": "RTX4090"}, {"model": "meta-llama/Llama-3.1-70B"})
    assert validate(path, "--calibration", "ideal", "--out", tmp_path / "out") == 0
    listed = {line["run_id"]: line["reason"] for line in read_csv(tmp_path / "out" / "skipped.csv")}
    assert listed["run1"] == "unknown GPU RTX4090"
    assert listed["run2"].startswith("refused: model: llama-3.1-70b does not fit")  # and no path of a folder long gone
    assert {line["run_id"] for line in read_csv(tmp_path / "out" / "validation.csv")} == {"run0"}
    shown = capsys.readouterr().out
    assert "3 rows, 1 simulated, 2 not" in shown and "unknown GPU RTX4090" in shown


def test_each_engine_has_its_policy_and_kernels() -> None:
    for engine, (policy, _) in names.ENGINES.items():
        assert names.policy_of(engine)[0] == policy and policy in registry.names("policy")
    assert names.policy_of("vllm_v0") == ("vllm_v0", "vllm") and names.policy_of("nim") == ("trtllm", "trtllm")


def test_stated_kv_blocks_are_taken_and_compared(tmp_path: Path) -> None:
    found = prediction(tmp_path, kv_blocks="1234").evidence
    assert found["kv_blocks"] == 1234 and found["predicted_kv_blocks"] > 20_000
    free = prediction(tmp_path).evidence
    assert free["kv_blocks"] == free["predicted_kv_blocks"] == found["predicted_kv_blocks"]


def test_a_replica_gets_its_share_of_a_trace(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    lines = "".join(f"{i * 10**9},{100 + i},{10 + i}\n" for i in range(8))
    (tmp_path / "traces" / "t.csv").write_text(f"StartTimeOffset,ContextTokens,GeneratedTokens\n{lines}")
    change = {"run_id": "apex_1", "engine_version": "0.6.0", "concurrency": "", "request_rate_rps": "0.5",
              "isl_mean": "104", "osl_mean": "28", "num_requests": "4",
              "length_dist": "trace file traces/t.csv (replica slice t_2DP1TP_1)",
              "notes": "gpu_memory_utilization 0.97, vLLM 0.6.0 defaults"}  # fmt: skip
    plan = build(row(tmp_path, **change))
    header, *given = (plan.trace or "").splitlines()
    assert header == "arrival_s,prompt_tokens,output_tokens"
    assert given == ["1.000000,101,22", "3.000000,103,26", "5.000000,105,30", "7.000000,107,34"]  # outputs doubled
    assert plan.scenario["engine"]["gpu_memory_utilization"] == 0.97
    assert predict.predict(predict.job(plan, predict.STATED, "ideal", 0)).evidence["finished"] == 4
    other = build(row(tmp_path, **{**change, "num_requests": "30"}))  # the run had other requests than the file
    assert other.scenario["workload"]["arrivals"] == {"name": "poisson", "rate_per_s": 0.5}
    assert predict.predict(predict.job(other, predict.STATED, "ideal", 0)).evidence["finished"] == 30


def test_what_was_not_measured_is_predicted_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(
        tmp_path, {**ONE_OF_X, "kv_dtype": ""}, {**ONE_OF_X, "kv_dtype": "", "tpot_ms": "10", "isl_mean": "300"}
    )
    assert validate(path, "--calibration", "ideal", "--out", tmp_path / "out") == 0
    found = read_csv(tmp_path / "out" / "validation.csv")
    assert list(found[0]) == ["run_id", "metric", "measured", "predicted"]
    assert [(line["run_id"], line["metric"]) for line in found] == [
        (run, metric) for run in ("run0", "run1") for metric in rows.METRICS
    ]
    assert [line["measured"] for line in found] == [""] * 6 + ["10"] + [""] * 3
    assert all(float(line["predicted"]) > 0 for line in found)
    others = read_csv(tmp_path / "out" / "alternatives.csv")
    assert {line["assumption"] for line in others} == {"kv_dtype=fp8"} and len(others) == 10
    assert "KV in bf16: the row does not say (2 rows)" in capsys.readouterr().out
    assert (tmp_path / "out" / "scatter.png").read_bytes().startswith(b"\x89PNG")
    assert "tokens/s" not in (tmp_path / "out" / "report.txt").read_text()  # no such error can be told


def test_nothing_measured_at_all(tmp_path: Path) -> None:
    assert validate(table(tmp_path, {}), "--calibration", "ideal", "--out", tmp_path / "out", "--fit-front-end") == 0
    assert len(read_csv(tmp_path / "out" / "validation.csv")) == 5
    assert not (tmp_path / "out" / "scatter.png").exists()


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    changes = [{**ONE_OF_X, "concurrency": str(c), "kv_dtype": "", "ttft_ms": "50", "tpot_ms": "9"} for c in (2, 4, 7)]
    path = table(tmp_path, *changes, {"gpu": "RTX4090"})
    files = ("validation.csv", "alternatives.csv", "skipped.csv", "report.txt", "scatter.png")
    given = []
    for number in ("1", "2"):
        assert validate(path, "--calibration", "ideal", "--jobs", number, "--out", tmp_path / number) == 0
        given.append([(tmp_path / number / name).read_bytes() for name in files])
    assert given[0] == given[1]
    assert validate(path, "--calibration", "ideal", "--seed", "5", "--out", tmp_path / "other") == 0
    assert (tmp_path / "other" / "validation.csv").read_bytes() != given[0][0]


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("ttft_ms", "-3", "must be a number over 0, got '-3'"),
        ("ttft_ms", "0", "must be a number over 0, got '0'"),
        ("tpot_ms", "nan", "must be a number over 0, got 'nan'"),
        ("e2e_ms", "inf", "must be a number over 0, got 'inf'"),
        ("req_per_s", "fast", "must be a number over 0, got 'fast'"),
        ("request_rate_rps", "nan", "must be a number over 0"),
        ("isl_mean", "-1", "must be a number over 0"),
        ("tp", "1.5", "must be a whole number from 1"),
        ("tp", "0", "must be a whole number from 1"),
        ("concurrency", "1e400", "must be a whole number from 1"),
        ("quality", "D", "must be one of A, B, C, got 'D'"),
        ("model", "", "missing"),
        ("run_id", "run0", "'run0' stands already in line 2"),
    ],
)
def test_bad_values_are_refused_with_their_place(
    column: str, value: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, {}, {column: value})
    assert validate(path) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"{path}:3: {column}: ") and what in shown.err
    assert len(shown.err.splitlines()) == 1 and not shown.out


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("", ":1: ", "empty"),
        ("\n", ":1: ", "empty"),
        ("run_id,quality\n", ":1: gpu: ", "column missing"),
        (",".join((*rows.COLUMNS, "tp")) + "\n", ":1: tp: ", "column stands twice"),
        (",".join(rows.COLUMNS) + "\na,b\n", ":2: ", f"2 fields, the header names {len(rows.COLUMNS)}"),
        (",".join(rows.COLUMNS) + '\n"a"b\n', ":2: ", "not CSV"),
        (",".join(rows.COLUMNS) + "\n", ": ", "no rows"),
    ],
)
def test_files_that_are_no_table(
    text: str, place: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    assert validate(path) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"{path}{place}") and what in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize("column", rows.COLUMNS)
def test_every_column_is_needed(column: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(",".join(name for name in rows.COLUMNS if name != column) + "\n")
    with pytest.raises(sim.ScenarioError, match=f"runs.csv:1: {column}: column missing"):
        rows.read(path)


def test_other_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, {})
    (tmp_path / "latin").write_bytes(path.read_bytes() + "é".encode("latin-1"))
    (tmp_path / "bad.yaml").write_text("schema: 1\n")
    for arguments, what in (
        ([tmp_path / "none.csv"], "none.csv: No such file"),
        ([tmp_path / "latin"], "not UTF-8"),
        ([path, "--filter", "gpus=x"], "--filter: unknown column 'gpus'; did you mean gpu?"),
        ([path, "--filter", "gpu"], "--filter: must be COLUMN=PATTERN"),
        ([path, "--filter", "gpu=B200*"], "no row passes --filter"),
        ([path, "--calibration", "defalt"], "unknown calibration 'defalt'; did you mean default?"),
        ([path, "--calibration", tmp_path / "bad.yaml"], "bad.yaml"),
        ([path, "--against", "nonsense"], "unknown calibration 'nonsense'"),
        ([path, "--front-end-ms", "-1"], "must be from 0 to 60000"),
        ([path, "--front-end-ms", "1", "--fit-front-end"], "not allowed with"),
        ([path, "--out", path], "cannot be written"),
    ):
        assert validate(*arguments) == 2, arguments  # type: ignore[arg-type]
        shown = capsys.readouterr().err
        assert what in shown and "Traceback" not in shown


def test_filters(tmp_path: Path) -> None:
    found = rows.read(table(tmp_path, {}, {"gpu": "H200 SXM"}, {"gpu": "B200 SXM", "tp": "8"}, {"quality": "C"}))

    def chosen(*filters: str) -> list[int]:
        return [found.index(each) for each in rows.select(found, filters)]

    assert chosen() == [0, 1, 2, 3]
    assert chosen("gpu=h100*") == [0, 3]
    assert chosen("gpu=h100*", "gpu=*200*", "quality=A") == [0, 1, 2]
    assert chosen("gpu!=H100*", "tp!=8") == [1]
    assert chosen("tp=1", "isl_mean=100", "num_requests=3", "quality=C") == [3]


def test_errors_and_what_counts(tmp_path: Path) -> None:
    """Predicted 100 each: measured 80, 100 and 125 are errors of +25, 0 and -20 %."""
    measured = [{"tpot_ms": value} for value in ("80", "100", "125")]
    more = [
        {"tpot_ms": "1", "quality": "C"},  # never
        {"tpot_ms": "200", "quality": "B"},  # by itself
        {"tpot_ms": "1", "length_dist": IN_HOUSE},  # cannot be right
        {"ttft_ms": "4999"},
        {"ttft_ms": "5000"},  # saturated
        {},
    ]
    found = scored(tmp_path, *measured, *more)
    everything = groups(found, "A")[0]
    assert everything.errors["tpot_ms"] == Errors(3, pytest.approx(0.2), pytest.approx(0.24), 0.0)
    assert everything.errors["ttft_ms"] == Errors(
        1, *[pytest.approx(abs(100 / 4999 - 1))] * 2, pytest.approx(100 / 4999 - 1)
    )
    assert groups(found, "B")[0].errors["tpot_ms"] == Errors(1, 0.5, 0.5, -0.5)
    assert [each.row.run_id for each in found if each.saturated] == ["run7"]
    assert found[3].unscored == "quality C" and "prefill tokens/s" in str(found[5].unscored)
    assert reported(found)[0].errors["tpot_ms"].signed == 99.0  # told, beside the score
    names_of = {(line.by, line.name) for line in groups(found, "A")}
    assert {
        ("TP", "vllm h100_sxm dense TP1"),
        ("concurrency", "c   1 to   4"),
        ("model", "llama-3.1-8b bf16"),
    } <= names_of


def test_a_run_under_two_names_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = {"tpot_ms": "5"}
    path = table(tmp_path, once, {**once, "notes": "again"}, {**once, "osl_mean": "12"}, {"tpot_ms": "6"}, {}, {})
    assert validate(path, "--calibration", "ideal", "--json", "--no-alternatives") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["errors"]["A"][0]["errors"]["tpot_ms"]["rows"] == 3
    assert found["unscored"] == [{"run_id": "run1", "reason": "the same run stands under another name"}]


def test_the_report_has_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tpot = prediction(tmp_path).metrics["tpot_ms"]
    path = table(tmp_path, {"tpot_ms": tpot / 1.1}, {"tpot_ms": tpot / 1.3})
    assert validate(path, "--calibration", "ideal", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    everything = found["errors"]["A"][0]
    assert everything["group"] == "quality A"
    assert everything["errors"]["tpot_ms"] == {
        "rows": 2, "median": pytest.approx(0.2), "p90": pytest.approx(0.28), "signed": pytest.approx(0.2),
    }  # fmt: skip
    assert [each["run_id"] for each in found["worst"]] == ["run1", "run0"]
    assert validate(path, "--calibration", "ideal") == 0
    assert "20.0 / 28.0 (+20.0)" in capsys.readouterr().out


def test_a_second_calibration_stands_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A calibration of half the bandwidth everywhere: decoding takes twice as long."""
    half = tmp_path / "half.yaml"
    kinds = ("gemm", "attention_decode", "elementwise", "logits", "attention_prefill")
    operators = "".join(f"  {kind}: {{bandwidth_fraction: 0.5}}\n" for kind in kinds)
    head = (
        "schema: 1\nname: half\ngpu: h100_sxm\nengine: vllm\nsoftware: none\nsource: none\nlicence: none\ndate: none\n"
    )
    half.write_text(f"{head}operators:\n{operators}")
    tpot = prediction(tmp_path).metrics["tpot_ms"]
    path = table(tmp_path, {"tpot_ms": tpot}, {"gpu": "H200 SXM"})
    out = tmp_path / "out"
    assert validate(path, "--calibration", "ideal", "--against", half, "--json", "--out", out) == 0
    everything = json.loads(capsys.readouterr().out)["errors"]["A"][0]
    assert everything["errors"]["tpot_ms"]["median"] == pytest.approx(0, abs=1e-9)
    assert everything["against"]["tpot_ms"]["signed"] == pytest.approx(1, rel=0.02)
    assert {line["assumption"] for line in read_csv(out / "alternatives.csv")} == {f"calibration={half}"}
    assert f"The same rows with {half}" in (out / "report.txt").read_text().replace("\n", "")
    assert validate(path, "--calibration", half, "--out", out) == 0  # none of the H200's
    assert [line["run_id"] for line in read_csv(out / "skipped.csv")] == ["run1"]


def test_one_front_end_constant_from_rows_that_then_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clients = ("4", "4", "8")
    shapes = [{**ONE_OF_X, "concurrency": c, "isl_mean": str(200 + i)} for i, c in enumerate(clients)]
    bare = [prediction(tmp_path, **shape).metrics["ttft_ms"] for shape in shapes]
    path = table(tmp_path, *({**s, "ttft_ms": t + 20} for s, t in zip(shapes, bare, strict=True)))
    assert validate(path, "--calibration", "ideal", "--fit-front-end", "--json", "--out", tmp_path / "out") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["front_end_ms"] == {"h100_sxm-vllm": pytest.approx(20)}
    errors = found["errors"]["A"][0]["errors"]["ttft_ms"]
    assert errors["rows"] == 1 and errors["median"] == pytest.approx(0, abs=1e-6)
    written = {(line["run_id"], line["metric"]): line for line in read_csv(tmp_path / "out" / "validation.csv")}
    for number, ttft in enumerate(bare):
        assert float(written[f"run{number}", "ttft_ms"]["predicted"]) == pytest.approx(ttft + 20)
    assert validate(path, "--calibration", "ideal", "--front-end-ms", "20", "--json") == 0
    assert json.loads(capsys.readouterr().out)["errors"]["A"][0]["errors"]["ttft_ms"]["rows"] == 3  # given: none leaves


def test_likely_reasons(tmp_path: Path) -> None:
    def why(metric: str, evidence: dict[str, Any] | None = None, note: str = "", **change: Any) -> str:
        plan = build(row(tmp_path, **change))
        other = predict.Prediction("run0", "kv_dtype=fp8", dict.fromkeys(rows.METRICS, 101.0))
        with_other = (other,) if change.get("kv_dtype") == "" else ()
        stated = predict.Prediction("run0", predict.STATED, dict.fromkeys(rows.METRICS, 50.0), evidence or {})
        return reason(Scored(plan, stated, with_other, note=note), metric)

    assert "with kv_dtype=fp8, which the row leaves open, +1%" in why("tpot_ms", kv_dtype="", tpot_ms="100")
    full = {"max_kv_usage": 0.99, "preemptions": 7}
    assert "the KV cache runs full (7 preemptions)" in why("ttft_ms", full, ttft_ms="100")
    assert "the median would be -1%" in why("tpot_ms", {"median_tpot_ms": 99.0}, tpot_ms="100", tpot_stat="unspecified")
    assert "50 ms a request missing" in why("ttft_ms", ttft_ms="100")
    assert "30 ms too much" in why("ttft_ms", {"mean_queue_ms": 40.0}, ttft_ms="20")
    assert "TP8" in why("tpot_ms", tpot_ms="100", tp="8", num_gpus="8")
    assert "bound by its host" in why("tpot_ms", tpot_ms="100", engine_version="0.6.0")
    assert why("tpot_ms", note="no calibration", tpot_ms="100").startswith("no calibration")
    assert why("e2e_ms", e2e_ms="100") == "nothing in the row or its simulation explains it"


@needs_shared
def test_every_measured_row_is_simulated_or_says_why_not(tmp_path: Path) -> None:
    found = rows.read(SHARED)
    planned, reasons = [], set()
    for each in found:
        try:
            planned.append(build(each))
        except Skip as skip:
            reasons.add(str(skip))
    assert len(planned) > 400 and all(reasons)
    dense = [
        p for p in planned if p.row.engine == "vllm" and p.scenario["model"] == "llama-3.1-70b" and p.row.quality == "A"
    ]
    assert len(dense) >= 100
    assert not [p for p in planned if p.campaign.name == "other"]


@needs_shared
def test_a_measured_row_from_end_to_end(tmp_path: Path) -> None:
    chosen: Sequence[str] = ("model=meta-llama/Llama-3.1-70B", "engine=vllm", "gpu=H200*", "tp=8", "concurrency=4")
    options = [word for text in chosen for word in ("--filter", text)]
    assert validate(SHARED, *options, "--out", tmp_path / "out") == 0
    errors = [
        float(r["predicted"]) / float(r["measured"]) - 1
        for r in read_csv(tmp_path / "out" / "validation.csv")
        if r["measured"]
    ]
    assert len(errors) >= 2 and all(math.isfinite(error) and abs(error) < 1 for error in errors)
