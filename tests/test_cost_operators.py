"""The counting functions against the lecture's closed forms, and against mistakes that other tools made."""

import pytest

from sim import gpus, models
from sim.cost import BatchShape, Operator, Shard, operators
from sim.cost.operators import causal_pairs, gemm
from sim.models import Model
from sim.scenario import Engine

H100 = gpus.parse("h100_sxm")
A100 = gpus.parse("a100_sxm")


def shape(**changes: object) -> Model:
    values = {
        "name": "test",
        "num_hidden_layers": 4,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 4096,
        "vocab_size": 32000,
    }
    return Model.model_validate({**values, **changes})


def shard(model: Model, **engine: object) -> Shard:
    return Shard.of(model, H100, Engine.model_validate(engine))


def by_name(found: list[Operator]) -> dict[str, Operator]:
    return {op.name: op for op in found}


def weights_read(model: Model, **engine: object) -> int:
    """Bytes of weights that a step reads on one GPU: what is moved with no rows at all."""
    part = shard(model, **engine)
    return sum(op.count * op.bytes for op in part.row_operators(0)) + part.logits(0).bytes


@pytest.mark.parametrize(
    "name", [n for n in models.names() if not (m := models.parse(n)).is_moe and m.mlp_matrices == 3]
)
def test_weights_read_are_the_parameters_less_the_input_table(name: str) -> None:
    model = models.parse(name)
    v, d, f, layers = model.vocab_size, model.hidden_size, model.intermediate_size, model.num_hidden_layers
    n, k, h = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    assert weights_read(model) == 2 * (v * d + 3 * d * f * layers + (2 * d * n * h + 2 * d * k * h) * layers)
    unread = 0 if model.tie_word_embeddings else v * d  # tied: the one table is read once, as the head
    assert weights_read(model) == 2 * (model.num_parameters - unread)


def test_tensor_parallelism_divides_weights_and_fp8_halves_all_but_the_head() -> None:
    model = models.parse("llama-3.1-70b")
    head = 2 * model.vocab_size * model.hidden_size
    assert 4 * weights_read(model, tensor_parallel_size=4) == weights_read(model)
    assert weights_read(model, weight_dtype="fp8") == (weights_read(model) - head) // 2 + head
    # the same bytes as those that memory sizes are made of, but for the input table
    for dtype, tp in (("bf16", 1), ("bf16", 8), ("fp8", 2)):
        held = model.weight_bytes(dtype, tp)
        assert weights_read(model, weight_dtype=dtype, tensor_parallel_size=tp) == held - head / tp


def test_two_matrices_and_learned_positions() -> None:
    model = models.parse(
        "opt-13b"
    )  # tied: the one table is read as the head; a row of positions per token, not counted
    assert weights_read(model) == 2 * (model.num_parameters - model.position_parameters)
    ops = by_name(shard(model).row_operators(10))
    assert ops["up"].flops == ops["down"].flops == 2 * 10 * 5120 * 20480 and "gate_up" not in ops
    assert ops["activation"].bytes == 10 * 20480 * 2 * 2


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b"])
def test_experts_touched_are_read_and_active_ones_compute(name: str) -> None:  # B62
    model = models.parse(name)
    part, expert = shard(model), 3 * model.hidden_size * model.mlp_width
    for m in (1, 8, 32, 4096):
        ops = part.expert_operators(m)
        rows = m * model.num_experts_per_tok
        assert sum(op.flops for op in ops) == 2 * rows * expert
        activations = 2 * rows * (2 * model.hidden_size + 3 * model.mlp_width)
        assert sum(op.bytes for op in ops) - activations == pytest.approx(2 * expert * model.experts_touched(m), abs=2)
    every = 2 * expert * model.num_local_experts * model.num_hidden_layers
    router = 2 * model.hidden_size * model.num_local_experts * model.num_hidden_layers
    unread = 2 * model.vocab_size * model.hidden_size
    assert weights_read(model) + every + unread == 2 * model.num_parameters
    assert by_name(part.row_operators(0))["router"].bytes * model.num_hidden_layers == router


@pytest.mark.parametrize(("dtype", "width"), [("int8", 1), ("int4", 0.5 + 2 / 128)])
def test_weights_of_few_bits_are_widened_for_bf16_arithmetic(dtype: str, width: float) -> None:
    op = by_name(shard(shape(), weight_dtype=dtype).row_operators(10))["down"]
    assert op.dtype == "bf16" and op.bytes == 4096 * 1024 * width + 10 * (4096 + 1024) * 2
    assert shard(shape(), kv_cache_dtype="int8").decode_attention(0, 1).bytes == 2 * 4 * 64


def test_matrix_product_intensity() -> None:
    b, d, f = 64, 8192, 28672
    flops, moved = gemm(b, d, f)
    assert flops / moved == 2 * b * d * f / (2 * b * d + 2 * d * f + 2 * b * f)
    flops, moved = gemm(b, 10**7, 10**7)
    assert flops / moved == pytest.approx(b, rel=1e-4)  # the limit


def test_mlp_intensity_goes_to_the_number_of_rows() -> None:
    ops = by_name(shard(shape(hidden_size=2**19, intermediate_size=2**19)).row_operators(8 * 16))
    mlp = [ops[name] for name in ("gate_up", "activation", "down")]
    assert sum(op.flops for op in mlp) / sum(op.bytes for op in mlp) == pytest.approx(8 * 16, rel=1e-3)


@pytest.mark.parametrize(("s", "t"), [(1, 1), (512, 1), (512, 64), (4096, 4096)])
def test_attention_intensity(s: int, t: int) -> None:
    part = shard(shape(num_key_value_heads=16))  # as many key/value heads as query heads, as in the lecture
    assert part.attention("attention_prefill", t, s, s * t).intensity == pytest.approx(s * t / (s + t), rel=1e-15)
    batch = 32  # decode: no gain by batching
    assert part.decode_attention(batch, batch * s).intensity == pytest.approx(s / (s + 1), rel=1e-15)


def test_ridge_of_an_h100() -> None:
    assert H100.bf16_tflops * 1e12 / (H100.memory_gb_per_s * 1e9) == pytest.approx(295, abs=0.5)


def test_kv_bytes_read_per_token_are_those_that_the_cache_holds() -> None:
    for name in ("llama-2-13b", "llama-3.1-8b", "qwen2.5-7b"):
        model = models.parse(name)
        for dtype, width in (("auto", 2), ("fp8", 1)):
            op = shard(model, kv_cache_dtype=dtype).decode_attention(0, 1)
            assert op.count * op.bytes == model.kv_bytes_per_token(width, 1)
            s = 1000
            held = 2 * width * s * model.num_key_value_heads * model.head_dim * model.num_hidden_layers
            op = shard(model, kv_cache_dtype=dtype).decode_attention(0, s)
            assert op.count * op.bytes == held


def test_kv_traffic_with_grouped_heads_in_bytes_not_bits() -> None:  # B18
    model = shape(num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, head_dim=128)
    op = shard(model, weight_dtype="fp8").decode_attention(0, 1)
    assert op.count * op.bytes == 57_344


def test_key_value_heads_are_replicated_never_divided_below_one() -> None:  # B19
    def heads(kv: int, tp: int) -> float:
        model = shape(num_attention_heads=32, num_key_value_heads=kv)
        op = shard(model, tensor_parallel_size=tp).decode_attention(0, 1)
        return op.bytes / (2 * 64 * 2)

    assert heads(4, 4) == heads(4, 8) == heads(8, 32) == 1
    assert heads(8, 4) == 2
    with pytest.raises(ValueError, match="4 GPUs do not divide the 6 attention heads"):
        shard(shape(num_attention_heads=6, num_key_value_heads=6), tensor_parallel_size=4)


def test_causal_prompts_cost_half_the_square() -> None:  # B59
    s, model = 2048, shape()
    op = shard(model).prefill_attention([(s, 0)])
    n, h = model.num_attention_heads, model.head_dim
    assert op.flops == 2 * n * h * s * (s + 1)
    assert op.flops == pytest.approx(4 * n * h * s * s / 2, rel=1 / s)
    assert shard(model).decode_attention(1, s).flops == 4 * n * h * s
    # chunks cost what the whole prompt does
    assert sum(causal_pairs(256, past) for past in range(0, s, 256)) == causal_pairs(s, 0)
    # 189 TFLOP/s of full squares were 121 % of the peak; of what is computed they are under 100 %
    credited, peak = 189.0, 312.0
    assert credited * 2 / peak > 1 > credited * 2 / peak * op.flops / (4 * n * h * s * s)


def test_grouped_heads_cut_bytes_not_scores() -> None:  # B60
    shapes = (shape(num_attention_heads=64, num_key_value_heads=kv, head_dim=128) for kv in (64, 8))
    full, grouped = (shard(model).decode_attention(0, 1) for model in shapes)
    assert full.flops == grouped.flops == 32_768
    assert full.bytes == 8 * grouped.bytes


def test_three_mlp_matrices() -> None:  # B61
    ops = by_name(shard(shape(hidden_size=4096, intermediate_size=14336)).row_operators(2048))
    flops = ops["gate_up"].flops + ops["down"].flops
    assert flops == 6 * 4096 * 14336 * 2048
    assert flops == pytest.approx(0.722e12, rel=1e-3)


def test_decode_reads_the_head_whole_and_one_row_of_the_input_table() -> None:  # B63
    model = models.parse("llama-3.1-8b")
    assert model.num_parameters == pytest.approx(8.030e9, rel=1e-3)
    bandwidth = 3.35e12
    assert weights_read(model) / bandwidth == pytest.approx(4.48e-3, rel=0.005)
    assert 2 * model.num_parameters / bandwidth == pytest.approx(4.79e-3, rel=0.005)
    tied = shape(tie_word_embeddings=True)
    assert weights_read(tied) == weights_read(shape())
    assert by_name(shard(model).row_operators(7))["embedding"].bytes == 7 * 2 * 4096 * 2


def test_no_square_of_scores_in_memory() -> None:
    one, two = (shard(shape()).prefill_attention([(s, 0)]) for s in (1000, 2000))
    assert two.bytes == 2 * one.bytes
    assert two.flops == pytest.approx(4 * one.flops, rel=1e-3)


def test_keys_and_values_of_the_past_are_read_once() -> None:
    model = shape()
    part = shard(model)
    fresh, behind = part.prefill_attention([(100, 0)]), part.prefill_attention([(100, 900)])
    assert behind.bytes - fresh.bytes == 900 * 2 * model.num_key_value_heads * model.head_dim * 2
    assert behind.flops - fresh.flops == 4 * model.num_attention_heads * model.head_dim * 100 * 900


def test_all_reduce_only_between_gpus() -> None:
    model = shape()
    assert "all_reduce" not in by_name(shard(model).row_operators(10))
    op = by_name(shard(model, tensor_parallel_size=4).row_operators(10))["all_reduce"]
    assert op.count == 2 * model.num_hidden_layers
    assert op.comm_bytes == 2 * 3 / 4 * 10 * model.hidden_size * 2
    assert op.bytes == op.flops == 0


def test_fp8_arithmetic_only_where_the_gpu_has_it() -> None:
    engine = Engine(weight_dtype="fp8")
    for gpu, dtype, width in ((H100, "fp8", 1), (A100, "bf16", 2)):
        op = by_name(Shard.of(shape(), gpu, engine).row_operators(10))["down"]
        assert op.dtype == dtype
        assert op.bytes == 4096 * 1024 + 10 * 4096 * width + 10 * 1024 * 2
        assert Shard.of(shape(), gpu, engine).logits(1).dtype == "bf16"  # not quantised in fp8 checkpoints


def test_a_step_lists_what_it_launches() -> None:
    always = {"embedding", "norms", "qkv", "rope", "kv_write", "out_proj", "gate_up", "activation", "down"}

    def names(batch: BatchShape) -> set[str]:
        return {op.name for op in operators(shape(), H100, Engine(), batch)}

    assert names(BatchShape(4, 400)) == always | {"attention_decode", "logits"}
    assert names(BatchShape(0, 0, ((64, 0),), 1)) == always | {"attention_prefill", "logits"}
    assert names(BatchShape(0, 0, ((64, 0),), 0)) == always | {"attention_prefill"}  # a chunk that is not the last
    mixed = by_name(operators(shape(), H100, Engine(), BatchShape(4, 400, ((64, 0), (16, 32)), 5)))
    assert mixed["qkv"].flops == 2 * 84 * 1024 * (16 + 2 * 4) * 64
    assert mixed["logits"].flops == 2 * 5 * 1024 * 32000
    assert mixed["attention_prefill"].flops == 4 * 16 * 64 * (64 * 65 // 2 + 16 * 32 + 16 * 17 // 2)
