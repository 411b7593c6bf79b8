"""Models and GPUs: published sizes, closed forms, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from sim import gpus, models
from sim.errors import Complaint
from sim.models import Model

# Parameters as published (the checkpoints' own counts).
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "codellama-34b": 33_743_970_304,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "yi-34b": 34_388_917_248,
    "mistral-large-2407": 122_610_069_504,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "minimax-m2.5": 228_689_764_864,
    "opt-13b": 12_853_473_280,
}


def shape(**values: Any) -> Model:
    data = {
        "name": "x",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 14336,
    }
    return models.parse({**data, "vocab_size": 128256, **values})


def refusal(value: object, folder: Path | None = None) -> tuple[str, str]:
    with pytest.raises(Complaint) as caught:
        models.parse(value, folder)
    return ".".join(map(str, caught.value.path)), caught.value.what


@pytest.mark.parametrize("name", models.names())
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    """Norms and biases are left out, so the count is a little low, never high."""
    counted = models.parse(name).num_parameters
    assert 0.999 * PUBLISHED[name] < counted <= PUBLISHED[name]


def test_closed_form_of_parameters_and_kv() -> None:
    """2VD + 3DFL + (2DNH + 2DKH)L, and 2 x 2 x K x H x L bytes of bf16 KV a token."""
    model = models.parse("llama-3.1-8b")
    v, d, f, layers, n, k, h = 128256, 4096, 14336, 32, 32, 8, 128
    assert model.num_parameters == 2 * v * d + 3 * d * f * layers + (2 * d * n * h + 2 * d * k * h) * layers
    assert model.kv_bytes_per_token() == 2 * 2 * k * h * layers == 131072
    assert model.weight_bytes() == 2 * model.num_parameters
    tied = shape(num_key_value_heads=8, tie_word_embeddings=True)
    assert model.num_parameters - tied.num_parameters == v * d


def test_fp8_halves_the_layers_and_keeps_embeddings_and_head() -> None:
    model = models.parse("llama-3.1-8b")
    tables = 2 * 128256 * 4096
    assert model.weight_bytes("fp8") == (model.num_parameters - tables) + 2 * tables


def test_kv_bytes_of_grouped_heads() -> None:
    """Cases B18 (grouped heads, bytes not bits; and 32 full heads) and the second half of B13 (head_dim as given)."""
    assert models.parse("qwen2.5-7b").kv_bytes_per_token() == 57_344
    assert 3072 * 57_344 / 2**30 == pytest.approx(0.164, abs=0.0005)
    assert models.parse("llama-2-7b").kv_bytes_per_token() * 132_608 == 69_524_783_104
    data = {"num_hidden_layers": 36, "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert shape(**data, head_dim=128).kv_bytes_per_token() == 147_456
    assert shape(**data).kv_bytes_per_token() == 92_160


def test_kv_heads_replicate_beyond_their_number() -> None:
    """Case B19: heads per GPU max(1, H/TP)."""
    four = models.parse("qwen2.5-7b")
    assert four.kv_heads(4) == four.kv_heads(8) == 1
    eight = shape(num_key_value_heads=8, num_hidden_layers=64)
    assert eight.kv_bytes_per_token(tp=32) == eight.kv_bytes_per_token(tp=8) == eight.kv_bytes_per_token() // 8
    assert eight.kv_bytes_per_token() == 4 * eight.kv_bytes_per_token(tp=4)
    assert (
        eight.weight_bytes(tp=16) > eight.weight_bytes() / 16
    )  # each GPU has its own copy of the key/value projections


@pytest.mark.parametrize(
    ("model", "tp", "what"),
    [
        ({"num_attention_heads": 6, "head_dim": 128}, 4, "4 GPUs do not divide the 6 attention heads of x"),
        ({"intermediate_size": 1001}, 2, "2 GPUs do not divide the 1001 columns"),
        ({"num_attention_heads": 36, "num_key_value_heads": 12, "head_dim": 64}, 4, None),
        (
            {"num_attention_heads": 24, "num_key_value_heads": 6, "head_dim": 64},
            4,
            "neither divide nor are a multiple of the 6",
        ),
        ({"num_key_value_heads": 2}, 8, None),
    ],
)
def test_sharding_that_does_not_divide_is_refused(model: dict[str, Any], tp: int, what: str | None) -> None:
    found = shape(**model).check_sharding(tp)
    assert found is None if what is None else found is not None and what in found


def test_names_and_mappings() -> None:
    assert models.parse("Llama-3.1-8B") == models.parse("llama-3.1-8b")
    changed = models.parse({"name": "llama-3.1-8b", "num_hidden_layers": 16})
    assert (changed.num_hidden_layers, changed.hidden_size) == (16, 4096)
    assert models.parse(models.parse("qwen3-14b").model_dump()) == models.parse("qwen3-14b")
    plain = shape()
    assert (plain.num_key_value_heads, plain.head_dim, plain.max_position_embeddings) == (32, 128, None)
    assert shape(num_local_experts=1, num_experts_per_tok=1) == plain


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        ("llama-3.1-8", "", "unknown model 'llama-3.1-8'; did you mean llama-3.1-8b? accepted: llama-2-7b,"),
        ("no/config.json", "", "no such file: 'no/config.json'; known models: llama-2-7b,"),
        (5, "", "must be the name of a model"),
        ({"name": "x"}, "num_hidden_layers", "missing"),
        (
            {"name": "llama-3.1-8b", "hidden_siz": 1},
            "hidden_siz",
            "unknown key; did you mean hidden_size? accepted: name,",
        ),
        ({"name": "llama-3.1-8b", "num_local_experts": 8}, "num_experts_per_tok", "missing; how many of the 8"),
        (
            {"name": "llama-3.1-8b", "num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok",
            "at most the 2 experts, got 3",
        ),
        (
            {"name": "llama-3.1-8b", "num_key_value_heads": 5},
            "num_key_value_heads",
            "must divide the 32 attention heads, got 5",
        ),
        ({"name": "llama-3.1-8b", "vocab_size": 0}, "vocab_size", "must be a whole number from 1"),
        ({"name": 3}, "name", "got 3"),
    ],
)
def test_models_that_are_refused(value: object, path: str, what: str) -> None:
    found = refusal(value)
    assert found[0] == path and what in found[1]


def test_head_dim_must_be_given_where_the_heads_do_not_divide() -> None:
    with pytest.raises(Complaint, match="the 6 heads do not divide the hidden_size 4096"):
        shape(num_attention_heads=6)


def test_config_files(tmp_path: Path) -> None:
    """Hugging Face's file: its other keys are ignored; what the sizes would be wrong for is refused."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    config: dict[str, Any] = models.parse("mistral-7b").model_dump(
        exclude={"name", "head_dim", "num_local_experts", "num_experts_per_tok"}
    )

    def written(**more: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["X"], "rope_theta": 1e6, **more}))

    written()
    model = models.parse("my-model/config.json", tmp_path)
    assert model.name == "my-model" and model.num_parameters == models.parse("mistral-7b").num_parameters
    written(sliding_window=None, num_key_value_heads=None)
    assert models.parse("my-model/config.json", tmp_path).num_key_value_heads == 32
    for more, what in (
        ({"sliding_window": 4096}, "windowed attention is not supported"),
        ({"num_experts": 8}, "num_experts_per_tok: missing"),
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "in some layers is not supported"),
        ({"n_shared_experts": 1}, "shared experts"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"hidden_size": "big"}, "hidden_size: must be a whole number"),
    ):
        written(**more)
        path, found = refusal("my-model/config.json", tmp_path)
        assert path == "" and what in found and "my-model/config.json" in found
    written(sliding_window=4096, use_sliding_window=False)
    assert models.parse("my-model/config.json", tmp_path) == model
    (folder / "config.json").write_text("{")
    assert "as JSON" in refusal("my-model/config.json", tmp_path)[1]


def test_config_files_of_other_families(tmp_path: Path) -> None:
    """Mixtures under each family's names for the same thing; OPT with its own."""

    def parsed(**config: Any) -> Model:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return models.parse("./config.json", tmp_path)

    qwen = models.parse("qwen3-30b-a3b").model_dump(exclude={"name", "num_local_experts"})
    found = parsed(**qwen, num_experts=128, model_type="qwen3_moe", mlp_only_layers=[], decoder_sparse_step=1)
    assert found.num_parameters == models.parse("qwen3-30b-a3b").num_parameters and found.head_dim == 128
    opt = {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "ffn_dim": 20480}
    found = parsed(**opt, vocab_size=50272, max_position_embeddings=2048, activation_function="relu", model_type="opt")
    assert found.num_parameters == models.parse("opt-13b").num_parameters
    assert (found.num_key_value_heads, found.mlp_matrices, found.tie_word_embeddings) == (40, 2, True)


@pytest.mark.parametrize(
    ("active", "tokens", "touched"), [(4, 8, 28.7), (4, 32, 81.7), (8, 1, 8.0), (8, 8, 51.6), (8, 32, 111.8)]
)
def test_experts_touched(active: int, tokens: int, touched: float) -> None:
    """Case B62: neither the active experts nor all."""
    model = shape(num_local_experts=128, num_experts_per_tok=active, moe_intermediate_size=768)
    assert model.experts_touched(tokens) == pytest.approx(touched, rel=0.01)


def test_quantised_weights() -> None:
    model = models.parse("llama-3.1-8b")
    tables = 2 * 128256 * 4096
    layers = model.num_parameters - tables
    assert model.weight_bytes("int8") == model.weight_bytes("fp8") == layers + 2 * tables
    assert model.weight_bytes("int4") == layers * (0.5 + 2 / 128) + 2 * tables  # a bf16 scale for 128 weights
    moe = models.parse("mixtral-8x7b")
    assert moe.weight_bytes("int8") < 0.51 * moe.weight_bytes()


@pytest.mark.parametrize("name", gpus.names())
def test_gpus_by_name(name: str) -> None:
    gpu = gpus.parse(name)
    assert (
        gpu.name == name and gpus.parse(gpu.model_dump()) == gpu and gpus.parse(name.upper().replace("_", "-")) == gpu
    )


def test_the_ridge_of_an_h100() -> None:
    gpu = gpus.parse("h100_sxm")
    assert gpu.bf16_tflops * 1e12 / (gpu.memory_gb_per_s * 1e9) == pytest.approx(295, abs=0.5)


def test_gpu_mappings() -> None:
    small = gpus.parse({"name": "h100_sxm", "memory_gib": 39.0})
    assert (small.memory_gib, small.sms, small.name) == (39.0, 132, "h100_sxm")
    own = gpus.parse({"name": "own", "memory_gib": 10, "bf16_tflops": 100, "memory_gb_per_s": 500, "sms": 40})
    assert own.fp8_tflops is None and own.link_gb_per_s is None


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        ("h100", "", "unknown GPU 'h100'; did you mean h100_sxm? accepted: h100_sxm,"),
        (5, "", "must be the name of a GPU or a mapping, got 5"),
        ({"name": "own"}, "memory_gib", "missing"),
        ({"name": "h100_sxm", "memory_gib": 0}, "memory_gib", "must be a number over 0"),
        ({"name": "h100_sxm", "memory_gb": 1}, "memory_gb", "did you mean memory_gib?"),
    ],
)
def test_gpus_that_are_refused(value: object, path: str, what: str) -> None:
    with pytest.raises(Complaint) as caught:
        gpus.parse(value)
    assert ".".join(map(str, caught.value.path)) == path and what in caught.value.what
