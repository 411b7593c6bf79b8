"""KV cache sizes against published runs; `python tests/test_kv_capacity.py` prints the table of docs/kv_capacity.md.

The form of the formula and its constants are named in sim/memory.py; nothing is fitted here. Counted by row, and with
a configuration that several rows share counting once.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sim  # noqa: E402
from sim.consistency import check  # noqa: E402
from sim.memory import activation_bytes  # noqa: E402
from sim.models import parse  # noqa: E402

MEASURED = ROOT.parent / "shared" / "measurements" / "end_to_end.csv"
MODELS = {
    "meta-llama/Llama-3.1-70B-Instruct": "llama-3.1-70b",
    "meta-llama/Llama-3.1-70B-Instruct (ModelOpt FP8)": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "mistralai/Mistral-Nemo-Instruct-2407": "mistral-nemo-12b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "01-ai/Yi-34B": "yi-34b",
}
RTX4090 = (
    "{name: rtx4090, memory_gib: 23.52, bf16_tflops: 165, fp8_tflops: 330, memory_gb_per_s: 1008, sms: 128,"
    " link_gb_per_s: 32}"
)
SORTED_UNTIL = "0.16"  # its sampler no longer sorts [vllm-project/vllm#33538, February 2026]
GPUS = {"H100 SXM": "h100_sxm", "H200 SXM": "h200_sxm", "RTX4090": RTX4090}


Row = tuple[str, str, str, int, float, float]


@cache
def rows() -> tuple[Row, ...]:
    """vLLM's version, model, GPU, TP, measured and predicted blocks of 16 tokens, of each row that says them."""
    found = []
    with MEASURED.open(newline="") as file:
        for row in csv.DictReader(file):
            measured = float(row["kv_blocks"] or 0) or float(row["kv_tokens"] or 0) / 16
            if not measured or row["quality"] == "C" or row["model"] not in MODELS:
                continue
            fp8 = row["weight_dtype"] == "fp8"
            seqs = int(float(row["max_num_seqs"] or 1024))  # where it is not given: vLLM's default on that GPU
            scenario = sim.load_text(
                f"""
model: {MODELS[row["model"]]}
gpu: {GPUS[row["gpu"]]}
engine:
  tensor_parallel_size: {int(row["tp"])}
  weight_dtype: {"fp8" if fp8 else "bf16"}
  kv_cache_dtype: {"fp8" if row["kv_dtype"] == "fp8" else "bf16"}
  sampler: {"sort" if row["engine_version"] < SORTED_UNTIL else "triton"}
policy: {{name: vllm, max_num_seqs: {seqs}, max_num_batched_tokens: {int(float(row["max_num_batched_tokens"]))}}}
workload: {{num_requests: 1, arrivals: batch, prompt_tokens: 1, output_tokens: 1}}
"""
            )
            predicted = check(scenario)["main"].sizes.kv_blocks
            found.append((row["engine_version"], row["model"], row["gpu"], int(row["tp"]), measured, float(predicted)))
    return tuple(found)


def configurations() -> list[Row]:
    """Rows that differ in more than their load."""
    return list(dict.fromkeys(rows()))


@pytest.mark.skipif(
    not MEASURED.exists(), reason="needs the measurements in ../shared, which are not part of this repo"
)
@pytest.mark.parametrize("counted, many", [(rows, 16), (configurations, 9)])
def test_kv_capacity_is_that_of_published_runs(counted: Callable[[], Sequence[Row]], many: int) -> None:
    errors = [abs(predicted / measured - 1) for *_, measured, predicted in counted()]
    assert len(errors) == many
    assert statistics.median(errors) < 0.02
    assert max(errors) < 0.05


def test_sorting_takes_what_was_measured_for_it() -> None:
    """1.25 GiB for 256 x 131,072 logits [vllm-project/vllm#32558]; before it, the layers' own peak counts."""
    nemo = parse("mistral-nemo-12b")
    sequences = 256
    assert nemo.vocab_size == 131072
    assert activation_bytes(nemo, 1, 0, sequences, "sort") == 1.25 * 2**30
    layers = 8192 * (4 * 5120 + 6 * 14336)
    assert activation_bytes(nemo, 1, 8192, 1, "sort") == layers
    assert activation_bytes(nemo, 1, 8192, sequences, "sort") == 8192 * 2 * 5120 + 1.25 * 2**30


if __name__ == "__main__":
    print("| vLLM | model | GPU | TP | measured blocks | predicted | error |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for version, model, gpu, tp, measured, predicted in configurations():
        error = f"{predicted / measured - 1:+.1%}"
        print(f"| {version} | {model} | {gpu} | {tp} | {measured:,.0f} | {predicted:,.0f} | {error} |")
    for words, counted in (("by configuration", configurations()), ("by row", rows())):
        errors = [abs(predicted / measured - 1) for *_, measured, predicted in counted]
        print(f"\n{words}: {len(errors)}, median {statistics.median(errors):.1%}, worst {max(errors):.1%}")
