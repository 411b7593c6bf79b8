"""The tables in docs/ that follow from the code: `python tests/doc_tables.py` writes them anew, a test compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. What a key accepts, its default and its line of help
come from the models and the registry; only what those leave unsaid is said here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402

from calibrate.check import points  # noqa: E402
from sim import checklist, gpus, registry, shorthand  # noqa: E402
from sim.cost import find_calibration, packaged  # noqa: E402
from sim.cost.calibration import Calibration, Operators, Ranges  # noqa: E402
from sim.cost.forms import (  # noqa: E402
    AllReduce,
    DecodeAttention,
    Efficiency,
    Experts,
    Gemm,
    Group,
    Pass,
    Passes,
    PrefillAttention,
    Segment,
)
from sim.scenario import Cluster, Engine, Pool, Prefix, RequestClass, Scenario, Slo, Workload  # noqa: E402
from sim.tables import REQUESTS, SPANS, STEPS  # noqa: E402

MARK = re.compile(r"<!-- table: (?P<name>\S+) -->\n.*?<!-- end -->", re.DOTALL)
COMPONENT = "a name, or a mapping with `name`"

# key: (accepted, default, meaning); None: as the model has it
TOP: dict[str, tuple[str | None, str | None, str | None]] = {
    "name": (None, "the file's name", "what results are called"),
    "model": ("a name, a mapping, or the path of a config.json", "required", "see [Models](#models)"),
    "gpu": ("a name or a mapping", "required", "see [GPUs](#gpus)"),
    "replicas": (None, None, "engines, each with `tensor_parallel_size` GPUs"),
    "router": (COMPONENT, shorthand.DEFAULT_ROUTER, "which replica gets a request, see [Routers](#routers)"),
    "engine": ("a mapping", "see below", "what all policies share, see [Engine](#engine)"),
    "policy": (COMPONENT, shorthand.DEFAULT_POLICY, "the batching policy, see [policies](policies.md)"),
    "policies": (
        "label: policy",
        "none",
        "`compare` runs all (`--policies all`: and every other policy there is), `run` the first, or `--policy LABEL`",
    ),
    "workload": ("a mapping", "required", "see [Workload](#workload)"),
    "cluster": ("a mapping", "from the keys above", "the long form, see [below](#long-form)"),
    "cost": (COMPONENT, shorthand.DEFAULT_COST, "what a step costs, see [Costs](#costs)"),
    "slo": ("a mapping", "none", "limits that a good request keeps, see [SLOs](#slos)"),
    "seed": (None, None, "of all random draws"),
    "replications": (None, None, "runs with other draws, from one seed"),
    "warmup_s": (
        "number from 0 to 1,000,000,000, or `auto`",
        None,
        "requests that arrive earlier do not count in latencies, s; `auto`: cut where MSER-5 says",
    ),
    "fast_forward": (None, None, "like steps are simulated as one event; the records are the same without, only later"),
}
WORKLOAD: dict[str, tuple[str | None, str | None, str | None]] = {
    "num_requests": (None, "a trace: all; else this or `duration_s`", "the run ends when all have ended"),
    "duration_s": (None, None, "the clock stops there, s; what has not ended is `unfinished`"),
    "ignore_eos": (None, None, None),
    "arrivals": (COMPONENT, None, "see [Arrivals](#arrivals)"),
    "classes": ("label: class", "one class, `default`", "kinds of requests, see [below](#long-form)"),
}
CLASS: dict[str, tuple[str | None, str | None, str | None]] = {
    "prompt_tokens": (
        "a number or a length distribution",
        "required, but for a trace or `lengths`",
        "the whole prompt, its prefix included, see [Lengths](#lengths)",
    ),
    "output_tokens": (
        "a number or a length distribution",
        "required, but for a trace or `lengths`",
        "see [Lengths](#lengths)",
    ),
    "lengths": ("a mapping with `name`", "none", "both lengths together, see [Lengths](#lengths)"),
    "prefix": ("a mapping", "none", "what prompts share, see [Shared prompts](#shared-prompts)"),
    "max_tokens": (None, "`max_model_len` less the prompt", None),
    "slo": ("a mapping", "the common one", "see [SLOs](#slos)"),
}
ENGINE: dict[str, tuple[str | None, str | None, str | None]] = {
    "max_model_len": (None, "the model's, lowered to what the KV cache holds", None),
    "enable_prefix_caching": (None, None, "requests may share KV blocks of equal beginnings, where the policy can"),
    "num_gpu_blocks_override": (None, None, "KV blocks instead of the estimate, the null block included"),
    "weight_dtype": (None, None, "of the layers' weights; embeddings and head stay bf16"),
    "kv_cache_dtype": (None, None, "auto: bf16"),
}
POOL: dict[str, tuple[str | None, str | None, str | None]] = {
    "role": (None, None, "prompts and decoding; the only role so far"),
    "replicas": (None, None, "engines"),
    "gpu": ("a name or a mapping", None, "see [GPUs](#gpus)"),
    "model": (TOP["model"][0], "the common one", "see [Models](#models)"),
    "engine": ("a mapping", "the common one, key by key", "see [Engine](#engine)"),
    "policy": (COMPONENT, "the common one", "see [policies](policies.md)"),
}
CLUSTER: dict[str, tuple[str | None, str | None, str | None]] = {
    "router": (COMPONENT, shorthand.DEFAULT_ROUTER, "see [Routers](#routers)"),
    "pools": ("label: pool", None, "so far one"),
}
SLO: dict[str, tuple[str | None, str | None, str | None]] = {
    "ttft_ms": (None, None, "most time to the first token, ms"),
    "tpot_ms": (None, None, "most time per output token after the first, ms"),
    "e2e_ms": (None, None, "most time from arrival to the last token, ms"),
}
CALIBRATION: dict[str, tuple[str | None, str | None, str | None]] = {
    "name": (None, None, "what tables and reports call it"),
    "engine": (None, None, "which engine was measured"),
    "source": (None, None, "where the measurements are from"),
    "licence": (None, None, "of the measurements"),
    "date": (None, None, "of the fit"),
    "operators": ("kind: what it reaches", None, "what is left out is at its ideal"),
    "noise": ("a mapping", "none", "spread of step times about the price, see [Noise](scenario.md#noise)"),
    "network": ("name: a mapping", "none", None),
    "ranges": ("a mapping", "none", None),
    "errors": ("a mapping", "none", "of the fit; `median_percent` of gemm and attention_decode are shown with results"),
}
OPERATORS: dict[str, tuple[str | None, str | None, str | None]] = {
    name: ("a mapping", "none" if "fp8" in name or name in ("experts", "logits", "sampling") else "ideal", None)
    for name in Operators.model_fields
}
for _name, _meaning in {
    "gemm": "matrix products of weights",
    "attention_prefill": "of prompts",
    "attention_decode": "of one new token a sequence",
    "elementwise": "embedding, norms, rotary, writing to the KV cache, activation",
    "all_reduce": "twice a layer",
    "attention_prefill_fp8": "over keys and values of one byte; null: as attention_prefill",
    "attention_decode_fp8": "the same; null: as attention_decode",
}.items():
    OPERATORS[_name] = (*OPERATORS[_name][:2], _meaning)


def replace_all(text: str) -> str:
    """The text with all its tables as the code says."""
    return MARK.sub(lambda found: f"<!-- table: {found['name']} -->\n{table(found['name'])}\n<!-- end -->", text)


def table(name: str) -> str:
    """One table, in Markdown."""
    made = _TABLES.get(name)
    if made is None:
        kind, _, component = name.partition("/")
        return _component(kind, component) if component else _components(kind)
    return made()


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def _keys(
    rows: Iterable[dict[str, Any]], said: dict[str, tuple[str | None, str | None, str | None]] | None = None
) -> str:
    """Rows of `registry.rows` as a table of keys."""
    made = []
    for row in rows:
        accepted, default, meaning = (said or {}).get(row["name"], (None, None, None))
        meaning = meaning or row["help"]
        follows = re.match(r"default: ([^;]+)(; )?", meaning)
        if follows:
            default, meaning = default or follows[1], meaning[follows.end() :]
        made.append((f"`{row['name']}`", _plain(accepted or row["type"]), default or _default(row), meaning))
    return _markdown(("key", "accepted", "default", "meaning"), made)


def _plain(kind: str) -> str:
    """`whole, 1 to 1,000` for `a whole number from 1 to 1000`."""
    kind = re.sub(r"\d{5,}", lambda found: f"{int(found[0]):,}", kind)
    return kind.replace("a whole number", "whole number").replace("a number", "number")


def _default(row: dict[str, Any]) -> str:
    value = row["default"]
    if row["required"]:
        return "required"
    if value is None or value == {}:
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _top() -> str:
    known = {row["name"]: row for row in [*registry.rows(Pool), *registry.rows(Scenario)]}
    nothing = {"type": "", "default": None, "required": False, "help": ""}
    assert set(TOP) == {*shorthand.TOP, *shorthand.TOP_REST}
    return _keys([{**known.get(key, nothing), "name": key} for key in (*shorthand.TOP, *shorthand.TOP_REST)], TOP)


def _class(short: bool) -> str:
    rows = [row for row in registry.rows(RequestClass) if (row["name"] in shorthand.CLASS) == short]
    return _keys(rows, CLASS)


def _listing(heading: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(checklist.listing(as_json=True))[heading]
    return found


def _components(heading: str) -> str:
    """All components of a kind: a row each, parameters in the last cell."""
    return _markdown(
        ("name", "what it is", "parameters"),
        (
            (f"`{row['name']}`", row["help"], "<br>".join(map(_parameter, row["parameters"])) or "none")
            for row in _listing(heading)
        ),
    )


def _parameter(row: dict[str, Any]) -> str:
    default = _default(row) if row["required"] or row["default"] is not None else ""
    return f"`{row['name']}`" + (f" ({default})" if default else "") + f": {row['help'] or _plain(row['type'])}"


def _component(heading: str, name: str) -> str:
    return _keys(next(row for row in _listing(heading) if row["name"] == name)["parameters"])


def _columns(schema: Any, said: dict[str, str]) -> str:
    assert list(said) == schema.names, (list(said), schema.names)
    return _markdown(
        ("column", "type", "meaning"), ((f"`{field.name}`", str(field.type), said[field.name]) for field in schema)
    )


def _models() -> str:
    heads = ("name", "layers", "hidden", "heads / KV heads", "context")
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    rows = []
    for row in _listing("models"):
        layers, hidden, heads_, kv, context = (f"{row[key]:,}" for key in keys)
        rows.append((f"`{row['name']}`", layers, hidden, f"{heads_} / {kv}", context))
    return _markdown(heads, rows)


def _gpus() -> str:
    heads = ("name", "GiB", "bf16 TFLOP/s", "fp8 TFLOP/s", "GB/s", "SMs", "link GB/s")
    keys = ("memory_gib", "bf16_tflops", "fp8_tflops", "memory_gb_per_s", "sms", "link_gb_per_s")
    rows = [(f"`{row['name']}`", *(f"{row[key]:g}" if row[key] else "–" for key in keys)) for row in _listing("gpus")]
    return _markdown(heads, rows)


REQUEST_COLUMNS = {
    "request_id": "as the policy sees it: `r0`, `r1` … in the order in which requests are issued",
    "class": "label of its class",
    "pool": "label of the pool that served it",
    "replica": "number of the replica; empty if it was never dispatched",
    "status": "finished, rejected, failed or unfinished (shed, timed_out, cancelled: later)",
    "reason": "why it did not finish; empty if it did",
    "priority": "smaller is more urgent",
    "arrival_s": "when it came",
    "first_scheduled_s": "start of the first step that computed it",
    "first_token_s": "when its first token was delivered",
    "finish_s": "when its last token was delivered",
    "prompt_tokens": "tokens of the prompt",
    "output_tokens": "tokens that it was given",
    "cached_tokens": "of the prompt, found in the prefix cache at its first admission",
    "preemptions": "how often it lost its blocks",
    "attempts": "1; more with retries, later",
    "queue_s": "from arrival to its first step, front end included",
    "prefill_s": "to its first token",
    "decode_s": "the rest, response overhead included",
    "preempted_s": "from each preemption, or from where `tgi` queues it anew, until it was computed again",
    "transfer_s": "0 until KV caches are transferred",
    "retry_s": "0 until requests are retried",
}
SPAN_COLUMNS = {
    "request_id": "whose tokens these are",
    "engine": "number of the replica",
    "lane": "0; more with pipeline parallelism, later",
    "first_step": "the step whose prompt computation gave a token; empty if none did",
    "first_tick": "the first tick in which it decoded",
    "ticks": "in how many consecutive ticks it did",
    "tokens": "`ticks`, and one more for `first_step`",
}
STEP_COLUMNS = {
    "engine": "number of the replica",
    "lane": "0",
    "step": "counts the steps of the engine",
    "tick": "counts its steps in which sequences decoded; empty for others",
    "decided_s": "when the scheduler decided it",
    "start_s": "when the GPU began",
    "end_s": "when its tokens existed",
    "seqs": "sequences in the batch",
    "emitted": "tokens that it gave",
    "prefill_tokens": "prompt tokens that it computed",
    "decode_tokens": "sequences that decoded, a token each",
    "context_tokens": "tokens that its attention read, summed over the sequences",
    "kv_blocks_used": "KV blocks in use after the decision",
    "waiting": "requests waiting after the decision, preempted ones among them",
    "preempted": "sequences preempted by the decision; not those aborted by it, who have failed",
}


def _beyond(form: type[Efficiency]) -> list[dict[str, Any]]:
    """What a form has beside the keys of all."""
    return [row for row in registry.rows(form) if row["name"] not in Efficiency.model_fields]


def _more(form: type[Efficiency]) -> str:
    return _keys(_beyond(form))


def _accuracy() -> str:
    """Errors of the shipped calibrations on what was held out, by kind of operator."""
    names = [name for name in packaged() if not name.endswith("-torch")]  # all of their kernels are fitted
    kinds = [kind for kind in Operators.model_fields if kind not in ("elementwise", "logits", "sampling")]
    rows = []
    for name in names:
        errors = find_calibration(name, None).errors
        cells = []
        for kind in kinds:
            found = errors.get(kind)
            cells.append(
                f"{found['median_percent']:.1f} / {found['p90_percent']:.0f} ({found['signed_median_percent']:+.1f})"
                if found
                else "–"
            )
        rows.append((f"`{name}`", *cells))
    return _markdown(("calibration", *(kind.replace("_", " ") for kind in kinds)), rows)


OWN = ("llama-3.1-8b", "llama-3.1-70b-tp4")  # shapes that were measured on each card in calibrate/measurements
OWN_CARDS = ("h100_sxm", "h200_sxm")


def own_points(card: str, shape: str, calibration: str) -> pd.DataFrame:
    """Points of a measured folder beside what a calibration says: operator, range, off (predicted / measured - 1)."""
    folder = ROOT / "calibrate" / "measurements" / f"{card}-{shape}"
    known, gpu = find_calibration(calibration, None), gpus.parse(card)
    kernels, _ = points.kernels(folder, gpu, known, "torch", everything=True)
    found = pd.concat([kernels, points.own_steps(folder, gpu, known, "torch")], ignore_index=True)
    return found.assign(off=100 * (found["predicted_s"] / found["measured_s"] - 1))


def _cell(off: pd.Series) -> str:
    size = off.abs()
    return f"{size.median():.1f} / {size.quantile(0.9):.1f} ({off.median():+.1f})"


def _measured_steps() -> str:
    rows = []
    for card in OWN_CARDS:
        found = {shape: own_points(card, shape, f"{card}-torch") for shape in OWN}
        for phase in ("decode", "prefill", "mixed", "prefill, past"):
            cells = [
                _cell(frame.loc[(frame["operator"] == f"step {dtype}") & (frame["range"] == phase), "off"])
                for frame in found.values()
                for dtype in ("bf16", "fp8")
            ]
            rows.append((card, phase.replace(", past", " behind a past"), *cells))
    heads = [f"{shape} {dtype}" for shape in ("8B", "70B on TP 4") for dtype in ("bf16", "fp8")]
    return _markdown(("card", "steps", *heads), rows)


def _measured_products() -> str:
    rows = []
    for card in OWN_CARDS:
        found = pd.concat([own_points(card, shape, f"{card}-vllm") for shape in OWN])
        found = found[found["operator"] == "matrix product bf16"]
        ranges = [found[found["range"] == name]["off"] for name in points.KINDS["gemm"].labels]
        rows.append((card, *(_cell(off) for off in (*ranges, found["off"]))))
    return _markdown(("card", *points.KINDS["gemm"].labels, "all"), rows)


_TABLES: dict[str, Callable[[], str]] = {
    "accuracy": _accuracy,
    "measured-steps": _measured_steps,
    "measured-products": _measured_products,
    "top": _top,
    "workload": lambda: _keys(registry.rows(Workload), WORKLOAD),
    "class-short": lambda: _class(True),
    "class-long": lambda: _class(False),
    "engine": lambda: _keys(registry.rows(Engine), ENGINE),
    "cluster": lambda: _keys(registry.rows(Cluster), CLUSTER),
    "pool": lambda: _keys(registry.rows(Pool), POOL),
    "prefix": lambda: _keys(registry.rows(Prefix)),
    "slo": lambda: _keys(registry.rows(Slo), SLO),
    "models": _models,
    "model-mapping": lambda: _keys(_listing("model_parameters")),
    "gpus": _gpus,
    "gpu-mapping": lambda: _keys(_listing("gpu_parameters")),
    "calibration": lambda: _keys(registry.rows(Calibration), CALIBRATION),
    "operators": lambda: _keys(registry.rows(Operators), OPERATORS),
    "efficiency": lambda: _keys(registry.rows(Efficiency)),
    "gemm": lambda: _more(Gemm),
    "experts": lambda: _more(Experts),
    "attention-prefill": lambda: _more(PrefillAttention),
    "attention-decode": lambda: _more(DecodeAttention),
    "elementwise": lambda: _keys(
        [*_beyond(Passes), *registry.rows(Pass)], {"by_pass": ("name: a mapping", "none", None)}
    ),
    "all-reduce": lambda: _keys(
        [*_beyond(AllReduce), *registry.rows(Group), *registry.rows(Segment)],
        dict.fromkeys(Group.model_fields, ("a mapping", "none", None))
        | {"by_gpus": ("number: a mapping", "none", None)},
    ),
    "ranges": lambda: _keys(registry.rows(Ranges), dict.fromkeys(Ranges.model_fields, ("[least, most]", "none", None))),
    "columns-requests": lambda: _columns(REQUESTS, REQUEST_COLUMNS),
    "columns-spans": lambda: _columns(SPANS, SPAN_COLUMNS),
    "columns-steps": lambda: _columns(STEPS, STEP_COLUMNS),
}


def main() -> None:
    for file in sorted((ROOT / "docs").glob("*.md")):
        before = file.read_text("utf-8")
        after = replace_all(before)
        if after != before:
            file.write_text(after, "utf-8", newline="\n")
            print(f"{file.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
