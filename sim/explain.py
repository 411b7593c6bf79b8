"""Why a step takes as long as it does: each operator's counts, its bound, its time and its share.

A prefill step computes `batch` whole prompts of `prompt` tokens, a decode step one token of each of `batch` sequences
that read `context` tokens, the new one included. All is per GPU and step, at mean prices. Attention over a causal
prompt is counted as computed, half of the square; `lecture` holds the intensities of the usual accounting beside it:
MLP about batch x tokens, attention S T / (S + T) over the full square, which is S/2 in prefill and 1 in decode.
"""

from typing import TYPE_CHECKING, Any

from . import registry
from .cost.roofline import RooflinePricer
from .errors import Complaint, ScenarioError
from .memory import kv_dtype_bytes

if TYPE_CHECKING:
    from .cost import Operator
    from .models import Model
    from .scenario import Pool, Scenario

BATCH, CONTEXT, PROMPT = 16, 1024, 1024
MLP = ("gate_up", "activation", "down", "router", "up")
MOST = 10**7


def explain(scenario: "Scenario", batch: int = BATCH, context: int = CONTEXT, prompt: int = PROMPT) -> dict[str, Any]:
    """The steps of the first pool: ridge_flop_per_byte, peaks, `prefill`, `decode`, `kv_cache`, `heads`, `lecture`.

    prefill: batch, prompt, total_s, ideal_s, host_s, flops, bytes, operators [{name, flops, bytes, comm_bytes,
    intensity, bound, time_s, share, ideal_s, ratio}]; decode likewise, with context. ideal_s is the time of the same
    operator at the GPU's peaks, ratio the time over it. ScenarioError if the scenario's cost knows no operators.
    """
    for name, count in (("batch", batch), ("context", context), ("prompt", prompt)):
        size(str(count), name)
    pool = next(iter(scenario.cluster.pools.values()))
    cost = _pricer(scenario, pool, pool.model)
    model, gpu, engine = pool.model, pool.gpu, pool.engine
    prompts = [(prompt, 0)] * batch
    prefill = {"batch": batch, "prompt": prompt, **_step(cost, 0, 0, prompts, batch)}
    decode = {"batch": batch, "context": context, **_step(cost, batch, batch * context, [], batch)}
    without = cost.mean(0, 0, [(context, 0)] * batch, batch)
    return {
        "name": scenario.name,
        "model": model.name,
        "gpu": gpu.name,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "note": cost.label,
        "ridge_flop_per_byte": gpu.bf16_tflops * 1e12 / (gpu.memory_gb_per_s * 1e9),
        "peak_flop_per_s": gpu.bf16_tflops * 1e12,
        "memory_byte_per_s": gpu.memory_gb_per_s * 1e9,
        "prefill": prefill,
        "decode": decode,
        "kv_cache": {
            "bytes_per_token": model.kv_bytes_per_token(kv_dtype_bytes(engine), engine.tensor_parallel_size),
            "step_s": decode["total_s"],
            "step_without_s": without,  # the whole context computed anew for every token
            "times_slower_without": without / decode["total_s"],
        },
        "heads": _heads(scenario, pool, batch, context),
        "lecture": _lecture(prefill, decode, batch, context, prompt),
    }


def size(word: str, name: str) -> int:
    """What `--batch`, `--context` and `--prompt` take. ScenarioError if it is no number of tokens or sequences."""
    if not (word.isascii() and word.isdigit() and 0 < int(word) <= MOST):
        raise ScenarioError(f"--{name}: {word!r} must be a whole number from 1 to {MOST:,}")
    return int(word)


def _pricer(scenario: "Scenario", pool: "Pool", model: "Model") -> RooflinePricer:
    built = registry.build("cost", scenario.cost)
    policy = registry.build("policy", pool.policy)
    kernels, hidden = getattr(policy, "kernels", "vllm"), getattr(policy, "async_scheduling", False)
    cost = built.pricer(model, pool.gpu, pool.engine, None, scenario.resolve, kernels, hidden)
    if not isinstance(cost, RooflinePricer):
        what = f"{scenario.cost.name} prices a step as a whole; to explain operators use roofline (--set cost=roofline)"
        raise scenario.error(Complaint(what, "cost", "name"))
    return cost


def _step(cost: RooflinePricer, n: int, context: int, prompts: list[tuple[int, int]], emitted: int) -> dict[str, Any]:
    operators = cost.operators(n, context, prompts, emitted)
    total_s = cost.mean(n, context, prompts, emitted)
    rows = [_row(cost, operator, total_s) for operator in operators]
    return {
        "total_s": total_s,
        "ideal_s": sum(row["ideal_s"] for row in rows),
        "host_s": cost.host_s + cost.host_per_seq_s * (n + len(prompts)),
        "flops": sum(row["flops"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "operators": rows,
    }


def _row(cost: RooflinePricer, operator: "Operator", total_s: float) -> dict[str, Any]:
    time_s, ideal_s = cost.seconds(operator), cost.ideal.seconds(operator)
    return {
        "name": operator.name,
        "flops": operator.count * operator.flops,
        "bytes": operator.count * operator.bytes,
        "comm_bytes": operator.count * operator.comm_bytes,
        "intensity": operator.intensity,
        "bound": bound(cost, operator),
        "time_s": time_s,
        "share": time_s / total_s,
        "ideal_s": ideal_s,
        "ratio": time_s / ideal_s if ideal_s else None,
    }


def bound(cost: RooflinePricer, operator: "Operator") -> str:
    """What takes most of an operator's time: compute, memory, network, or latency, the fixed part of its launches."""
    parts = cost.prices.terms(operator)
    most = max(parts)
    if most in (parts.floor, parts.blocks, parts.chain):
        return "latency"
    return "network" if parts.network == most else "compute" if parts.compute == most else "memory"


def _heads(scenario: "Scenario", pool: "Pool", batch: int, context: int) -> dict[str, dict[str, Any]]:
    """The same decode step with as many key/value heads as query heads (MHA), as given, and with one (MQA)."""
    given, engine = pool.model, pool.engine
    found = {}
    for label, heads in (("mha", given.num_attention_heads), ("as_given", given.num_key_value_heads), ("mqa", 1)):
        model = given.model_copy(update={"num_key_value_heads": heads})
        cost = _pricer(scenario, pool, model)
        rows = cost.operators(batch, batch * context, [], batch)
        attention = next(operator for operator in rows if operator.name == "attention_decode")
        found[label] = {
            "num_key_value_heads": heads,
            "kv_bytes_per_token": model.kv_bytes_per_token(kv_dtype_bytes(engine), engine.tensor_parallel_size),
            "attention_intensity": attention.intensity,
            "attention_s": cost.seconds(attention),
            "decode_s": cost.mean(batch, batch * context, [], batch),
        }
    return found


def _lecture(prefill: dict[str, Any], decode: dict[str, Any], batch: int, context: int, prompt: int) -> dict[str, Any]:
    """Intensities, FLOP/byte: as counted here, beside the forms of the usual accounting."""
    return {
        "mlp_intensity": {"prefill": _mlp(prefill), "decode": _mlp(decode)},
        "mlp_intensity_limit": {"prefill": batch * prompt, "decode": batch},
        "attention_intensity_full_square": {"prefill": prompt / 2, "decode": context / (context + 1)},
        "attention_intensity_counted": {"prefill": _attention(prefill), "decode": _attention(decode)},
    }


def _mlp(step: dict[str, Any]) -> float:
    rows = [row for row in step["operators"] if row["name"] in MLP or row["name"].startswith("expert")]
    return float(sum(row["flops"] for row in rows) / sum(row["bytes"] for row in rows))


def _attention(step: dict[str, Any]) -> float:
    return float(next(row["intensity"] for row in step["operators"] if row["name"].startswith("attention")))


def text(found: dict[str, Any]) -> str:
    """The same for a terminal, at most 100 columns but for the cost's note."""
    gpus = f"{found['tensor_parallel_size']} x {found['gpu']}"
    lines = [f"{found['name']}: {found['model']} on {gpus}, per GPU and step"]
    lines.append(
        f"ridge {found['ridge_flop_per_byte']:.0f} FLOP/byte: {found['peak_flop_per_s'] / 1e12:g} TFLOP/s over "
        f"{found['memory_byte_per_s'] / 1e12:g} TB/s"
    )
    if found["note"]:
        lines.append(f"cost: {found['note']}")
    prefill, decode = found["prefill"], found["decode"]
    lines += ["", f"prefill: {prefill['batch']} prompts of {prefill['prompt']} tokens", *_table(prefill)]
    lines += ["", f"decode: {decode['batch']} sequences that read {decode['context']} tokens each", *_table(decode)]
    cache, heads, lecture = found["kv_cache"], found["heads"], found["lecture"]
    lines += ["", "intensity, FLOP/byte                     prefill      decode"]
    for label, key in (
        ("MLP, counted", "mlp_intensity"),
        ("MLP, limit (its tokens)", "mlp_intensity_limit"),
        ("attention, counted (causal half)", "attention_intensity_counted"),
        ("attention, S T / (S + T)", "attention_intensity_full_square"),
    ):
        lines.append(f"  {label:<36}{lecture[key]['prefill']:>10,.1f}{lecture[key]['decode']:>12,.2f}")
    lines += [
        "",
        f"KV cache: a token takes {1e3 * cache['step_s']:.3f} ms, without the cache {1e3 * cache['step_without_s']:.3f}"
        f" ms ({cache['times_slower_without']:.1f} times)",
        "key/value heads       heads   KV bytes/token   intensity   attention ms   decode ms",
    ]
    for label, name in (("mha", "as query heads (MHA)"), ("as_given", "as given"), ("mqa", "one (MQA)")):
        row = heads[label]
        lines.append(
            f"{name:<22}{row['num_key_value_heads']:>5}{row['kv_bytes_per_token']:>17,}"
            f"{row['attention_intensity']:>12.2f}{1e3 * row['attention_s']:>15.3f}{1e3 * row['decode_s']:>12.3f}"
        )
    return "\n".join(lines)


def _ratio(ratio: float | None) -> str:
    return f"{'-' if ratio is None else f'{ratio:.2f}':>7}"


def _figure(number: float) -> str:
    return f"{number:,.2f}" if number < 1e5 else f"{number:,.0f}"  # columns stay apart


def _table(step: dict[str, Any]) -> list[str]:
    head = (
        f"  {'operator':<17}{'GFLOP':>12}{'MB':>11}{'FLOP/byte':>11}  {'bound':<8}{'ideal ms':>11}{'time ms':>11}"
        f"{'ratio':>7}{'share':>8}"
    )
    lines = [head]
    for row in step["operators"]:
        moved = row["bytes"] or row["comm_bytes"]
        lines.append(
            f"  {row['name']:<17}{_figure(row['flops'] / 1e9):>12}{_figure(moved / 1e6):>11}"
            f"{row['intensity']:>11,.2f}  "
            f"{row['bound']:<8}{1e3 * row['ideal_s']:>11.4f}{1e3 * row['time_s']:>11.4f}{_ratio(row['ratio'])}"
            f"{100 * row['share']:>7.1f}%"
        )
    if step["host_s"]:
        share = 100 * step["host_s"] / step["total_s"]
        lines.append(
            f"  {'host':<17}{'':>34}  {'latency':<8}{0:>11.4f}{1e3 * step['host_s']:>11.4f}{_ratio(None)}{share:>7.1f}%"
        )
    intensity = step["flops"] / step["bytes"]
    lines.append(
        f"  {'total':<17}{_figure(step['flops'] / 1e9):>12}{_figure(step['bytes'] / 1e6):>11}{intensity:>11,.2f}  "
        f"{'':<8}{1e3 * step['ideal_s']:>11.4f}{1e3 * step['total_s']:>11.4f}"
        f"{_ratio(step['total_s'] / step['ideal_s'])}{100:>7.1f}%"
    )
    return lines
