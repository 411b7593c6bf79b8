"""KV cache sizes: published figures, refusals with their numbers, what is lowered and said."""

import csv
from pathlib import Path
from typing import Any

import pytest

from sim import from_mapping
from sim.consistency import check
from sim.errors import ScenarioError
from sim.memory import CUDA_CONTEXT_GIB, GIB, KVSizes

MEASURED = Path(__file__).parent.parent.parent / "shared" / "measurements" / "end_to_end.csv"
WORKLOAD = {"num_requests": 1, "arrivals": "batch", "prompt_tokens": 1, "output_tokens": 1}
MODELS = {
    "meta-llama/Llama-3.1-70B-Instruct": "llama-3.1-70b",
    "mistralai/Mistral-Nemo-Instruct-2407": "mistral-nemo-12b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "01-ai/Yi-34B": "yi-34b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
}


def sizes(model: Any = "llama-3.1-8b", gpu: Any = "h100_sxm", policy: Any = "vllm", **engine: Any) -> KVSizes:
    scenario = from_mapping({"model": model, "gpu": gpu, "policy": policy, "engine": engine, "workload": WORKLOAD}, "x")
    return check(scenario)["main"].sizes


def refused(**arguments: Any) -> str:
    with pytest.raises(ScenarioError) as caught:
        sizes(**arguments)
    return str(caught.value)


def shape(layers: int, kv_heads: int, heads: int = 32) -> dict[str, Any]:
    return {
        "name": "x",
        "num_hidden_layers": layers,
        "hidden_size": 4096,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "intermediate_size": 4096,
        "vocab_size": 32000,
    }


def given(gib: float, model: Any, **engine: Any) -> KVSizes:
    """With that much memory for the KV cache, as engines print it."""
    gpu = {"name": "h100_sxm", "memory_gib": 1000}
    return sizes(model=model, gpu=gpu, kv_cache_memory_bytes=int(gib * GIB), **engine)


def test_the_formula() -> None:
    found = sizes(policy={"name": "vllm", "max_num_seqs": 100, "max_num_batched_tokens": 2000}, tensor_parallel_size=2)
    activations = (2000 * (4 * 4096 + 6 * 14336 / 2) + 100 * 128256 * (2 / 2 + 8)) / GIB
    weights = found.weights_gib
    assert found.activations_gib == pytest.approx(activations, rel=1e-12)
    assert weights == pytest.approx(2 * 8_029_995_008 / 2 / GIB, rel=1e-12)
    left = 0.9 * 79.1 - weights - activations - CUDA_CONTEXT_GIB
    assert found.kv_blocks == int(left * GIB // (16 * 65536))
    assert found.kv_tokens == 16 * found.kv_blocks and found.num_gpu_blocks == found.kv_blocks - 1
    assert left - found.kv_gib < 16 * 65536 / GIB
    assert found.max_concurrency == found.kv_tokens / 131072


def test_the_whole_memory_has_no_hidden_reserve() -> None:
    found = sizes(gpu_memory_utilization=1)
    rest = 79.1 - found.weights_gib - found.activations_gib - CUDA_CONTEXT_GIB
    assert 0 <= rest - found.kv_gib < 16 * 131072 / GIB


def test_small_card_where_20k_worked_and_29k_did_not() -> None:
    """Case B01, with the memory that was left: 3.81 and 2.89 GiB, and with the printed numbers of blocks."""
    model = shape(32, 8)
    left = 0.9 * 23.58 - 17.06 - 0.35
    assert given(left, model, max_model_len=20_000).kv_blocks == pytest.approx(1952, abs=3)
    fits = given(1952 * 16 * 131072 / GIB, model, max_model_len=20_000)
    assert (fits.kv_blocks, fits.kv_tokens) == (1952, 31_232) and fits.max_concurrency == pytest.approx(1.56, abs=0.005)
    gpu = {"name": "h100_sxm", "memory_gib": 1000}
    message = refused(model=model, gpu=gpu, kv_cache_memory_bytes=1478 * 16 * 131072, max_model_len=29_000)
    assert "29000" in message and "23648" in message and message.startswith("x: engine.max_model_len: ")


def test_full_heads_on_an_a100() -> None:
    """Case B03: 7,351 blocks of 8 MiB; from the card within 5 %."""
    exact = given(7351 * 8 / 1024, "llama-2-7b")
    assert (exact.kv_blocks, exact.kv_tokens) == (7351, 117_616) and exact.kv_gib == pytest.approx(57.43, abs=0.005)
    assert sizes(model="llama-2-7b", gpu="a100_sxm").kv_blocks == pytest.approx(7351, rel=0.05)


@pytest.mark.parametrize(("gib", "length", "band"), [(48.66, 205_728, 16), (55.65, 235_296, 32)])
def test_the_longest_context_that_fits(gib: float, length: int, band: int) -> None:
    """Case B06: attention under data parallelism is not sharded; 62.00 GiB for 262,144 tokens."""
    model = {**shape(62, 8), "max_position_embeddings": 262_144}
    found = given(gib, model)
    assert 262_144 * 253_952 / GIB == pytest.approx(62.00, abs=0.01)
    assert found.max_model_len == pytest.approx(length, abs=band) and found.max_model_len % 16 == 0
    held = f"what the KV cache of {found.kv_tokens} tokens holds"
    assert found.warnings == [f"max_model_len lowered from 262144 to {found.max_model_len}, {held}"]


def test_14b_matches_in_memory_tokens_and_ratio() -> None:
    """Case B08."""
    found = given(6.51, shape(40, 8), max_model_len=32_768)
    assert (found.kv_blocks, found.kv_tokens) == (2666, 42_656) and round(found.max_concurrency, 2) == 1.30


def test_sharded_and_replicated_pools() -> None:
    """Case B19: equal bytes per GPU hold 4.00 times the tokens at TP4; with four heads TP8 holds what TP4 does."""
    eight = shape(64, 8, heads=64)
    one, four = (given(40, eight, tensor_parallel_size=tp, block_size=256).kv_blocks for tp in (1, 4))
    assert four / one == pytest.approx(4.0, abs=0.01)
    few = shape(32, 4)
    assert given(40, few, tensor_parallel_size=4).kv_tokens == given(40, few, tensor_parallel_size=8).kv_tokens


def test_measured_blocks_of_real_engines() -> None:
    """KV blocks that vLLM 0.15 printed; the formula has no fitted constant but the CUDA context."""
    if not MEASURED.exists():
        pytest.skip("needs ../shared/measurements/end_to_end.csv, which is not part of the repository")
    with MEASURED.open(newline="") as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if r["run_id"].startswith("blis") and r["kv_blocks"] and r["model"] in MODELS
        ]
    assert len(rows) >= 7
    for row in rows:
        policy = {"name": "vllm", **{key: int(row[key]) for key in ("max_num_seqs", "max_num_batched_tokens")}}
        found = sizes(model=MODELS[row["model"]], policy=policy, tensor_parallel_size=int(row["tp"]))
        assert found.kv_blocks == pytest.approx(int(row["kv_blocks"]), rel=0.011), row["run_id"]


def test_dtypes() -> None:
    bf16, fp8 = sizes(), sizes(kv_cache_dtype="fp8")
    assert sizes(kv_cache_dtype="bf16") == bf16
    assert fp8.kv_tokens // 16 in (2 * bf16.kv_blocks, 2 * bf16.kv_blocks + 1)
    assert sizes(weight_dtype="fp8").weights_gib < 0.6 * bf16.weights_gib
    assert sizes(gpu="a100_sxm", weight_dtype="fp8").weights_gib == sizes(weight_dtype="int8").weights_gib
    assert sizes(weight_dtype="int4").weights_gib < 0.4 * bf16.weights_gib
    assert sizes(kv_cache_dtype="int8") == fp8


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    message = refused(model="llama-3.1-70b")
    assert message.startswith("x: model: llama-3.1-70b does not fit: 131.41 GiB weights + ")
    assert "0.9 x 79.1 = 71.19 GiB" in message and "tensor_parallel_size" in message
    assert sizes(model="llama-3.1-70b", tensor_parallel_size=4).kv_blocks > 29_000
    assert "does not fit" in refused(model="llama-3.1-70b", num_gpu_blocks_override=100)
    assert "and 100.00 GiB of KV" in refused(kv_cache_memory_bytes=100 * GIB)
    assert "hold 1 blocks of 2097152 bytes" in refused(kv_cache_memory_bytes=2097152)


def test_blocks_given_by_hand_warn_and_count_the_null_block() -> None:
    """Cases B48 and B53: 2,337 blocks are 37,392 tokens as printed, and what does not fit is rejected singly."""
    found = sizes(num_gpu_blocks_override=2337, max_model_len=131_072)
    assert (found.kv_blocks, found.num_gpu_blocks, found.kv_tokens) == (2337, 2336, 37_392)
    assert len(found.warnings) == 1 and "131072" in found.warnings[0] and "37392" in found.warnings[0]
    lowered = sizes(num_gpu_blocks_override=2337)
    assert lowered.max_model_len == 2336 * 16 and "lowered" in lowered.warnings[0]
    assert "asks for" in sizes(num_gpu_blocks_override=10**6, max_model_len=100).warnings[0]


def test_a_context_beyond_the_models_own_is_said() -> None:
    assert "beyond the model's own context of 4096" in sizes(model="llama-2-7b", max_model_len=8192).warnings[0]


def test_the_null_block_holds_no_context() -> None:
    """A context that fills all blocks is one block too long."""
    blocks = 101
    assert given(blocks * 2 / 1024, "llama-3.1-8b", max_model_len=1600).max_model_len == 1600
    message = refused(kv_cache_memory_bytes=blocks * 2 * 2**20, max_model_len=1601)
    assert "1601" in message and message.endswith("accepted: up to 1600")


def test_what_a_policy_reserves_must_fit() -> None:
    """Static batching sets batch_size x max_model_len tokens aside; unwritten, max_model_len is lowered to that."""
    static = {"name": "static", "batch_size": 64}
    lowered = sizes(policy=static)
    assert 64 * lowered.max_model_len <= 16 * lowered.num_gpu_blocks < 64 * (lowered.max_model_len + 16) + 16 * 64
    assert "64 times reserved" in lowered.warnings[0]
    message = refused(policy=static, max_model_len=8192)
    assert message.startswith("x: policy: reserves 524288 tokens of KV with max_model_len 8192, the memory holds ")
    assert f"accepted: max_model_len up to {lowered.max_model_len}" in message
    assert "even with max_model_len 16" in refused(policy={"name": "static", "batch_size": 30_000})
