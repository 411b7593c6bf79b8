"""What only several values together can tell: checks across a scenario, and values that follow from others.

Complaints carry long paths; the scenario knows how to name the user's own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import memory, registry
from .errors import Complaint

if TYPE_CHECKING:
    from .scenario import Pool, RequestClass, Scenario


@dataclass(frozen=True)
class Checked:
    """A pool's policy object and memory, as checked."""

    policy: Any
    sizes: memory.KVSizes


def check(scenario: "Scenario") -> dict[str, Checked]:
    """Complains about the first thing in which two values contradict each other; the sizes of each pool otherwise."""
    _check_workload(scenario)
    parts: list[tuple[tuple[str, ...], str, registry.Component]] = [
        (("workload", "arrivals"), "arrivals", scenario.workload.arrivals),
        (("cost",), "cost", scenario.cost),
        (("cluster", "router"), "router", scenario.cluster.router),
    ]
    for label, request_class in scenario.workload.classes.items():
        if request_class.lengths is not None:
            parts.append((("workload", "classes", label, "lengths"), "length_pairs", request_class.lengths))
    for path, kind, component in parts:
        built = registry.build(kind, component)
        if hasattr(built, "verify"):
            try:
                built.verify(scenario.resolve)
            except Complaint as complaint:
                raise complaint.under(*path) from None
    for label, pool in scenario.cluster.pools.items():
        _check_order(scenario, pool, "cluster", "pools", label, "policy", "order")
    return {label: check_pool(pool, "cluster", "pools", label) for label, pool in scenario.cluster.pools.items()}


def _check_order(scenario: "Scenario", pool: "Pool", *path: str) -> None:
    asked = pool.policy.params.get("order")
    if asked is None or not getattr(registry.get("order", asked["name"]), "needs_deadlines", False):
        return
    limits = [scenario.slo, *(kind.slo for kind in scenario.workload.classes.values() if kind.slo is not None)]
    if all(limit.ttft_ms is None for limit in limits):
        what = "slo.ttft_ms or workload.classes.LABEL.slo.ttft_ms"
        raise Complaint(f"{asked['name']} needs a time by which first tokens are due, {what}", *path)


def check_pool(pool: "Pool", *path: str) -> Checked:
    """A pool's sharding, dtypes, policy and memory."""
    engine, gpu = pool.engine, pool.gpu
    tp = engine.tensor_parallel_size
    if refused := pool.model.check_sharding(tp):
        raise Complaint(refused, *path, "engine", "tensor_parallel_size")
    if tp > 1 and gpu.link_gb_per_s is None:
        raise Complaint(f"missing; {tp} GPUs of {gpu.name} need a link", *path, "gpu", "link_gb_per_s")
    policy = registry.build("policy", pool.policy)
    try:
        sizes = memory.kv_cache(pool, policy)
    except Complaint as complaint:
        raise complaint.under(*path) from None
    refused = policy.check(engine, sizes.max_model_len) if hasattr(policy, "check") else None
    if refused is None and hasattr(policy, "check_kv"):
        refused = policy.check_kv(sizes.kv_tokens, sizes.max_model_len)
    if refused:
        raise Complaint(refused, *path, "policy")
    return Checked(policy, sizes)


def with_gpu_defaults(scenario: "Scenario") -> "Scenario":
    """The scenario with each pool's policy complete: what it leaves open is what its engine chooses on that GPU."""
    pools = {
        label: pool.model_copy(update={"policy": _complete(pool)}) for label, pool in scenario.cluster.pools.items()
    }
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"pools": pools})})


def _complete(pool: "Pool") -> registry.Component:
    defaults_for = getattr(registry.get("policy", pool.policy.name), "defaults_for", None)
    chosen: dict[str, Any] = defaults_for(pool.gpu) if defaults_for else {}
    missing = {key: value for key, value in chosen.items() if pool.policy.params.get(key) is None}
    return pool.policy.having(**missing) if missing else pool.policy


def at_rate(scenario: "Scenario", rate_per_s: float) -> registry.Component:
    """The arrivals of a scenario at another mean rate, requests/s."""
    arrivals = scenario.workload.arrivals
    if "rate_per_s" in arrivals.params:
        return registry.parse("arrivals", {**arrivals.plain(), "rate_per_s": rate_per_s})
    built = registry.build("arrivals", arrivals)
    if not hasattr(built, "scale_to"):
        raise Complaint(
            f"{arrivals.name} arrivals have no rate, so they cannot be run at {rate_per_s:g} requests/s", "name"
        )
    scale = built.scale_to(rate_per_s, scenario.workload, scenario.resolve)
    return registry.parse("arrivals", {**arrivals.plain(), "rate_scale": scale})


def _check_workload(scenario: "Scenario") -> None:
    workload = scenario.workload
    traced = workload.arrivals.name == "trace"
    if not traced and workload.num_requests is None and workload.duration_s is None:
        raise Complaint("missing; a workload has num_requests or duration_s, or both", "workload", "num_requests")
    if workload.arrivals.name == "batch" and workload.num_requests is None:
        raise Complaint(
            "missing; all requests of a batch come at once, so it needs their number", "workload", "num_requests"
        )
    warmup_s = 0.0 if scenario.warmup_s == "auto" else scenario.warmup_s
    if workload.duration_s is not None and warmup_s >= workload.duration_s:
        raise Complaint(f"must be less than workload.duration_s, {workload.duration_s:g}, got {warmup_s:g}", "warmup_s")
    if workload.arrivals.params.get("rescale") and workload.num_requests is None:
        raise Complaint("missing; rescaled arrivals need their number", "workload", "num_requests")
    for label, kind in workload.classes.items():
        _check_class(kind, traced, "workload", "classes", label)


def _check_class(kind: "RequestClass", traced: bool, *path: str) -> None:
    paired = kind.lengths is not None
    if traced and paired:
        raise Complaint("lengths come from the trace; leave it out", *path, "lengths")
    if traced and kind.samples > 1:
        raise Complaint("prompts come from the trace, each as often as it stands there; leave it out", *path, "samples")
    if paired and kind.samples > 1:
        what = "needs prompt_tokens and output_tokens: one prompt has several outputs, and a pair of lengths has one"
        raise Complaint(what, *path, "samples")
    for key in ("prompt_tokens", "output_tokens"):
        given = getattr(kind, key) is not None
        if traced and given:
            raise Complaint("lengths come from the trace; leave it out", *path, key)
        if paired and given:
            raise Complaint("both lengths come from `lengths`; leave one of the two out", *path, key)
        if not traced and not paired and not given:
            raise Complaint("missing; a number of tokens or a length distribution", *path, key)
    params = kind.prompt_tokens.params if kind.prompt_tokens is not None else {}
    longest = params.get("tokens", params.get("max"))
    if kind.prefix is not None and longest is not None and kind.prefix.tokens > longest:
        what = f"is more than the longest prompt, {longest}; prompt_tokens counts the whole prompt, its prefix included"
        raise Complaint(what, *path, "prefix", "tokens")
