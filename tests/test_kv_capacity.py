"""KV cache sizes against published runs; `python tests/test_kv_capacity.py` prints the table of docs/kv_capacity.md.

The form of the formula and its one constant are named in sim/memory.py; nothing is fitted here. A
configuration that several rows share counts once.
"""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sim  # noqa: E402
from sim.consistency import check  # noqa: E402

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
GPUS = {"H100 SXM": "h100_sxm", "H200 SXM": "h200_sxm", "RTX4090": RTX4090}


def rows() -> list[tuple[str, str, int, float, float]]:
    """Model, GPU, TP, measured and predicted blocks of 16 tokens, of each configuration once."""
    found = {}
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
policy: {{name: vllm, max_num_seqs: {seqs}, max_num_batched_tokens: {int(float(row["max_num_batched_tokens"]))}}}
workload: {{num_requests: 1, arrivals: batch, prompt_tokens: 1, output_tokens: 1}}
"""
            )
            predicted = check(scenario)["main"].sizes.kv_blocks
            key = (row["model"], row["gpu"], row["tp"], row["max_num_batched_tokens"])
            found[key] = (row["model"], row["gpu"], int(row["tp"]), measured, float(predicted))
    return list(found.values())


@pytest.mark.skipif(
    not MEASURED.exists(), reason="needs the measurements in ../shared, which are not part of this repo"
)
def test_kv_capacity_is_that_of_published_runs() -> None:
    errors = [abs(predicted / measured - 1) for *_, measured, predicted in rows()]
    assert len(errors) == 9
    assert statistics.median(errors) < 0.02
    assert max(errors) < 0.05


if __name__ == "__main__":
    print("| model | GPU | TP | measured blocks | predicted | error |\n| --- | --- | --- | --- | --- | --- |")
    for model, gpu, tp, measured, predicted in rows():
        print(f"| {model} | {gpu} | {tp} | {measured:,.0f} | {predicted:,.0f} | {predicted / measured - 1:+.1%} |")
