"""Models by name, mapping or Hugging Face config.json, and the sizes that follow from their shapes.

Decoder-only transformers with a gated (three-matrix) MLP, or a plain one of two matrices where `hidden_act` is relu
or gelu (OPT), or a mixture of experts, each a gated MLP, with a router in each layer. Counted are the matrices: norms,
rotary or position tables and small biases are left out (about 0.1 % of the parameters). Letters as in the usual
accounting: V vocabulary, D hidden size, F MLP width, L layers, N heads, K key/value heads, H head size, E experts;
2VD + 3DFL + (2DNH + 2DKH)L parameters, VD where the head is tied; with experts 3DFE + DE a layer for the MLP.
"""

import json
from pathlib import Path as FilePath
from typing import Annotated, Any

from pydantic import Field, ValidationError

from .checking import Section, explain
from .errors import Complaint, show, suggest

BYTES = {"bf16": 2, "fp8": 1, "int8": 1}
GROUP = 128  # weights of int4 that share a bf16 scale
WEIGHT_BYTES: dict[str, float] = {**BYTES, "int4": 0.5 + 2 / GROUP}
"""Bytes of a weight of the layers. Scales of int8 and fp8 (one a column) are left out, those of int4 counted."""
PLAIN = ("relu", "gelu", "gelu_new", "gelu_pytorch_tanh")  # activations of two-matrix MLPs


class Model(Section):
    """One model; the keys are those of its config.json."""

    name: Annotated[str, Field(min_length=1, max_length=200, description="a known name, or a name of your own")]
    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000, description="layers")]
    hidden_size: Annotated[int, Field(ge=1, le=1_000_000, description="width of the residual stream")]
    num_attention_heads: Annotated[int, Field(ge=1, le=100_000, description="query heads of a layer")]
    num_key_value_heads: Annotated[int, Field(ge=1, le=100_000, description="default: num_attention_heads")]
    head_dim: Annotated[int, Field(ge=1, le=100_000, description="default: hidden_size / num_attention_heads")]
    intermediate_size: Annotated[int, Field(ge=1, le=10_000_000, description="width of the gated MLP")]
    vocab_size: Annotated[int, Field(ge=1, le=100_000_000, description="tokens in the vocabulary")]
    tie_word_embeddings: Annotated[bool, Field(description="input and output embedding are one matrix")] = False
    max_position_embeddings: Annotated[
        int | None, Field(ge=1, le=1_000_000_000, description="longest context, tokens")
    ] = None
    hidden_act: Annotated[
        str, Field(min_length=1, max_length=50, description="relu or gelu: an MLP of two matrices; others are gated")
    ] = "silu"
    num_local_experts: Annotated[int, Field(ge=1, le=100_000, description="experts of a layer; 1: a dense model")] = 1
    num_experts_per_tok: Annotated[int, Field(ge=1, le=100_000, description="experts that compute a token")] = 1
    moe_intermediate_size: Annotated[
        int | None, Field(ge=1, le=10_000_000, description="width of an expert; default: intermediate_size")
    ] = None

    @property
    def is_moe(self) -> bool:
        return self.num_local_experts > 1

    @property
    def mlp_matrices(self) -> int:
        return 2 if self.hidden_act in PLAIN and not self.is_moe else 3

    @property
    def position_parameters(self) -> int:
        """A table of learned positions, as the plain models have."""
        return (self.max_position_embeddings or 0) * self.hidden_size if self.mlp_matrices == 2 else 0

    @property
    def mlp_width(self) -> int:
        """Of the MLP, or of one expert."""
        return (self.is_moe and self.moe_intermediate_size) or self.intermediate_size

    def experts_touched(self, tokens: int) -> float:
        """Experts of a layer that a step of `tokens` tokens reads, in the mean over uniform, independent routing."""
        share = self.num_experts_per_tok / self.num_local_experts
        return self.num_local_experts * (1.0 - (1.0 - share) ** tokens)

    @property
    def num_parameters(self) -> int:
        tables = 1 if self.tie_word_embeddings else 2
        embeddings = tables * self.vocab_size * self.hidden_size + self.position_parameters
        return embeddings + self.num_hidden_layers * self.layer_parameters(1)

    def layer_parameters(self, tp: int) -> int:
        """Matrix parameters of a layer on one of `tp` GPUs; key/value heads are replicated where they don't divide."""
        heads = self.num_attention_heads // tp
        attention = 2 * self.hidden_size * (heads + self.kv_heads(tp)) * self.head_dim
        mlp = self.mlp_matrices * self.hidden_size * self.mlp_width // tp
        if self.is_moe:
            return attention + self.num_local_experts * (mlp + self.hidden_size)  # every GPU has the whole router
        return attention + mlp

    def weight_bytes(self, dtype: str = "bf16", tp: int = 1) -> float:
        """Bytes of weights per GPU. Quantised checkpoints keep embeddings, head and routers in bf16."""
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        routers = self.hidden_size * self.num_local_experts if self.is_moe else 0
        layer = (self.layer_parameters(tp) - routers) * WEIGHT_BYTES[dtype] + routers * BYTES["bf16"]
        return self.num_hidden_layers * layer + (tables / tp + self.position_parameters) * BYTES["bf16"]

    def kv_heads(self, tp: int = 1) -> int:
        """Key/value heads per GPU: never fewer than one, each GPU needs its own copy."""
        return max(1, self.num_key_value_heads // tp)

    def kv_bytes_per_token(self, dtype_bytes: int = 2, tp: int = 1) -> int:
        """KV cache bytes per token and GPU: keys and values of every layer."""
        return 2 * self.num_hidden_layers * self.kv_heads(tp) * self.head_dim * dtype_bytes

    def check_sharding(self, tp: int) -> str | None:
        """Why tensor parallelism over `tp` GPUs is impossible; None if it is possible."""
        heads, kv_heads, width = self.num_attention_heads, self.num_key_value_heads, self.mlp_width
        for count, what in ((heads, "attention heads"), (width, "columns of the MLP (intermediate_size)")):
            if count % tp:
                return f"{tp} GPUs do not divide the {count} {what} of {self.name}"
        if kv_heads % tp and tp % kv_heads:
            return f"{tp} GPUs neither divide nor are a multiple of the {kv_heads} key/value heads of {self.name}"
        return None


# From each config.json: layers, hidden, heads, key/value heads, head size, MLP width, vocabulary, tied, context.
_KNOWN: dict[str, tuple[int, int, int, int, int, int, int, bool, int]] = {
    "llama-2-7b": (32, 4096, 32, 32, 128, 11008, 32000, False, 4096),
    "llama-2-13b": (40, 5120, 40, 40, 128, 13824, 32000, False, 4096),
    "llama-2-70b": (80, 8192, 64, 8, 128, 28672, 32000, False, 4096),
    "llama-3-8b": (32, 4096, 32, 8, 128, 14336, 128256, False, 8192),
    "llama-3-70b": (80, 8192, 64, 8, 128, 28672, 128256, False, 8192),
    "llama-3.1-8b": (32, 4096, 32, 8, 128, 14336, 128256, False, 131072),
    "llama-3.1-70b": (80, 8192, 64, 8, 128, 28672, 128256, False, 131072),
    "llama-3.1-405b": (126, 16384, 128, 8, 128, 53248, 128256, False, 131072),
    "llama-3.2-1b": (16, 2048, 32, 8, 64, 8192, 128256, True, 131072),
    "llama-3.2-3b": (28, 3072, 24, 8, 128, 8192, 128256, True, 131072),
    "llama-3.3-70b": (80, 8192, 64, 8, 128, 28672, 128256, False, 131072),
    "codellama-34b": (48, 8192, 64, 8, 128, 22016, 32000, False, 16384),
    "mistral-7b": (32, 4096, 32, 8, 128, 14336, 32768, False, 32768),  # v0.3; v0.1 had a window of 4096
    "mistral-nemo-12b": (40, 5120, 32, 8, 128, 14336, 131072, False, 131072),
    "mistral-large-2407": (88, 12288, 96, 8, 128, 28672, 32768, False, 131072),
    "qwen2.5-7b": (28, 3584, 28, 4, 128, 18944, 152064, False, 131072),
    "qwen2.5-14b": (48, 5120, 40, 8, 128, 13824, 152064, False, 131072),
    "qwen2.5-32b": (64, 5120, 40, 8, 128, 27648, 152064, False, 131072),
    "qwen2.5-72b": (80, 8192, 64, 8, 128, 29568, 152064, False, 131072),
    "qwen3-4b": (36, 2560, 32, 8, 128, 9728, 151936, True, 40960),
    "qwen3-8b": (36, 4096, 32, 8, 128, 12288, 151936, False, 40960),
    "qwen3-14b": (40, 5120, 40, 8, 128, 17408, 151936, False, 40960),
    "qwen3-32b": (64, 5120, 64, 8, 128, 25600, 151936, False, 40960),
    "yi-34b": (60, 7168, 56, 8, 128, 20480, 64000, False, 4096),
    "mixtral-8x7b": (32, 4096, 32, 8, 128, 14336, 32000, False, 32768),
    "mixtral-8x22b": (56, 6144, 48, 8, 128, 16384, 32768, False, 65536),
    "qwen3-30b-a3b": (48, 2048, 32, 4, 128, 6144, 151936, False, 40960),
    "qwen3-235b-a22b": (94, 4096, 64, 4, 128, 12288, 151936, False, 40960),
    "minimax-m2.5": (62, 3072, 48, 8, 128, 1536, 200064, False, 196608),
    "opt-13b": (40, 5120, 40, 40, 128, 20480, 50272, True, 2048),
}
_KEYS = tuple(Model.model_fields)[1:]
_MORE: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "mixtral-8x22b": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3-30b-a3b": {"num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "qwen3-235b-a22b": {"num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536},
    "minimax-m2.5": {"num_local_experts": 256, "num_experts_per_tok": 8},
    "opt-13b": {"hidden_act": "relu"},
}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # the families' names for one thing
_FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "opt")
_UNSUPPORTED = {  # what a config.json may say that the sizes here would be wrong for
    "kv_lora_rank": "latent attention (MLA)",
    "n_shared_experts": "shared experts",
    "shared_expert_intermediate_size": "shared experts",
    "first_k_dense_replace": "dense layers among those with experts",
    "mlp_only_layers": "dense layers among those with experts",
    "attention_chunk_size": "chunked attention",
    "layer_types": "windowed or linear attention in some layers",
    "linear_num_key_heads": "linear attention",
    "ssm_cfg": "state-space layers",
}


def names() -> list[str]:
    return list(_KNOWN)


def facts(name: str) -> dict[str, Any] | None:
    """The values of a known model; capitals are allowed."""
    plain = name.lower()
    return (
        {"name": plain, **dict(zip(_KEYS, _KNOWN[plain], strict=False)), **_MORE.get(plain, {})}
        if plain in _KNOWN
        else None
    )


def parse(value: Any, folder: FilePath | None = None) -> Model:
    """A name, the path of a config.json (relative to `folder`), or a mapping; with a known name it changes that."""
    if isinstance(value, Model):
        return value
    if isinstance(value, str):
        known = facts(value)
        return Model(**known) if known is not None else _from_file(value, folder)
    if not isinstance(value, dict):
        raise Complaint(f"must be the name of a model, the path of a config.json or a mapping, got {show(value)}")
    name = value.get("name", "custom")
    known = (facts(name) if isinstance(name, str) else None) or {}
    return _checked({"name": name, **known, **{k: v for k, v in value.items() if k != "name" or not known}})


def _checked(data: dict[str, Any]) -> Model:
    given = [(key, data.pop(key)) for key in _EXPERTS if key in data]
    if counts := [(key, count) for key, count in given if count is not None]:
        data["num_local_experts"] = counts[0][1]
    for key in ("num_experts_per_tok", "hidden_act", "num_local_experts", "moe_intermediate_size"):
        if key in data and data[key] is None:
            del data[key]
    heads, hidden = data.get("num_attention_heads"), data.get("hidden_size")
    if data.get("num_key_value_heads") is None and heads is not None:
        data["num_key_value_heads"] = heads
    if data.get("head_dim") is None and type(heads) is int and type(hidden) is int and heads > 0:
        if hidden % heads:
            raise Complaint(
                f"missing; needed where the {heads} heads do not divide the hidden_size {hidden}", "head_dim"
            )
        data["head_dim"] = hidden // heads
    try:
        model = Model.model_validate(data)
    except ValidationError as error:
        raise explain(error, Model, data) from None
    if model.num_attention_heads % model.num_key_value_heads:
        what = f"must divide the {model.num_attention_heads} attention heads, got {model.num_key_value_heads}"
        raise Complaint(what, "num_key_value_heads")
    if model.num_experts_per_tok > model.num_local_experts:
        what = f"must be at most the {model.num_local_experts} experts, got {model.num_experts_per_tok}"
        raise Complaint(what, "num_experts_per_tok")
    if model.is_moe and "num_experts_per_tok" not in data:
        raise Complaint(
            f"missing; how many of the {model.num_local_experts} experts compute a token", "num_experts_per_tok"
        )
    return model


def _from_file(path: str, folder: FilePath | None) -> Model:
    if not ("/" in path or path.endswith(".json")):
        raise Complaint(
            f"unknown model {show(path)}; {suggest(path, names())}; or the path of a config.json, or a mapping"
        )
    file = (folder or FilePath()) / path
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise Complaint(f"no such file: {show(path, 200)}; known models: {', '.join(names())}") from None
    except (OSError, ValueError) as error:
        raise Complaint(f"cannot read {show(path, 200)} as JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(config, dict):
        raise Complaint(f"{show(path, 200)} must hold a JSON object")
    config = {**config, **config.get("text_config", {})}  # multimodal models keep the language model's values there
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True) and window < config.get("max_position_embeddings", window + 1):
        raise Complaint(
            f"{show(path, 200)}: sliding_window is {show(window)}, and windowed attention is not supported yet"
        )
    for key, what in _UNSUPPORTED.items():
        if config.get(key) and (key != "layer_types" or set(config[key]) != {"full_attention"}):
            raise Complaint(f"{show(path, 200)}: {key} is set, and {what} is not supported yet")
    if config.get("decoder_sparse_step", 1) != 1:
        what = "dense layers among those with experts are not supported yet"
        raise Complaint(f"{show(path, 200)}: decoder_sparse_step is set, and {what}")
    family = config.get("model_type")
    if family is not None and family not in _FAMILIES:
        raise Complaint(
            f"{show(path, 200)}: model_type {show(family)} is not supported; accepted: {', '.join(_FAMILIES)}"
        )
    config.pop("hidden_act", None)  # all these families have gated MLPs, whatever the function, but for OPT
    if "ffn_dim" in config:  # OPT
        if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
            raise Complaint(f"{show(path, 200)}: word_embed_proj_dim: projected embeddings are not supported yet")
        config = {
            "tie_word_embeddings": True, "hidden_act": "relu", "intermediate_size": config["ffn_dim"],
            **({"hidden_act": config["activation_function"]} if config.get("activation_function") else {}), **config,
        }  # fmt: skip
    label = file.parent.name if file.name == "config.json" and file.parent.name else file.stem
    try:
        return _checked({"name": label, **{k: config[k] for k in (*_KEYS, *_EXPERTS) if k in config}})
    except Complaint as complaint:
        raise Complaint(f"{show(path, 200)}: {'.'.join(map(str, complaint.path))}: {complaint.what}") from None
