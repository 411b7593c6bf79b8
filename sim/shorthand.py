"""Short form -> long form, and the way back for messages.

The long form has workload.classes and cluster.pools, each pool with its own gpu, model, engine and policy. Whatever
the user wrote at the top or straight under workload is moved there; `Origins` remembers from where, so that a
complaint names the user's own path.
"""

from typing import Any

from . import gpus, models, registry
from .errors import Complaint, Path, show, suggest

TOP = (
    "name",
    "model",
    "gpu",
    "replicas",
    "router",
    "engine",
    "policy",
    "policies",
    "workload",
    "cluster",
    "cost",
    "slo",
    "seed",
)
TOP_REST = ("replications", "warmup_s", "fast_forward")
RUN = ("name", "cost", "slo", "seed", *TOP_REST)
ONE_POOL = ("gpu", "replicas", "router")
PER_POOL = ("model", "engine", "policy")
POOL = ("role", "replicas", "gpu", *PER_POOL)
WORKLOAD = ("num_requests", "duration_s", "ignore_eos", "arrivals")
CLASS = ("prompt_tokens", "output_tokens", "lengths", "max_tokens", "prefix", "samples", "priority", "tenant")
DEFAULT_POLICY = "vllm"
DEFAULT_ROUTER = "round_robin"
DEFAULT_COST = "roofline"
NEEDED = {
    "model": "missing; the name of a model, the path of a config.json or a mapping; "
    f"accepted names: {', '.join(models.names())}",
    "gpu": f"missing; the name of a GPU or a mapping; accepted names: {', '.join(gpus.names())}",
}


class Origins:
    """Long path -> path as the user wrote it."""

    def __init__(self, moved: dict[Path, Path] | None = None) -> None:
        self._moved = dict(moved or {})

    def copy(self) -> "Origins":
        return Origins(self._moved)

    def move(self, long: Path, user: Path) -> None:
        self._moved[long] = user

    def __call__(self, path: Path) -> Path:
        for end in range(len(path), -1, -1):
            if path[:end] in self._moved:
                return (*self._moved[path[:end]], *path[end:])
        return path


def named(data: dict[str, Any]) -> dict[str, str]:
    """Names of the components that a scenario need not write, so that one of their parameters can be set alone."""
    return {"cost": DEFAULT_COST, **({} if "cluster" in data else {"router": DEFAULT_ROUTER, **_unnamed_policy(data)})}


def _unnamed_policy(data: dict[str, Any]) -> dict[str, str]:
    return {} if data.get("policies") else {"policy": DEFAULT_POLICY}


def expand(data: dict[str, Any], chosen: str | None = None) -> tuple[dict[str, Any], Origins]:
    """The long form of what the user wrote, unchecked but for the keys that only the short form has.

    `chosen` is a label of `policies` or the name of a policy: all pools get it. Otherwise a pool's own policy counts,
    then the common one, the first of `policies`, and vllm with its defaults.
    """
    _known(data, (*TOP, *TOP_REST), ())
    data = {key: value for key, value in data.items() if value is not None or key not in ("engine", "slo", "policies")}
    origins = Origins()
    policies = _labelled(data.get("policies", {}), "policies")
    long = {key: data[key] for key in RUN if key in data}
    long.setdefault("cost", DEFAULT_COST)
    long["policies"] = policies
    long["workload"] = _workload(data, origins)
    policy = _policy(data, policies, chosen)
    long["cluster"] = _cluster(data, policy, chosen is not None, origins)
    return long, origins


def _workload(data: dict[str, Any], origins: Origins) -> Any:
    if "workload" not in data:
        raise Complaint(f"missing; it must be a mapping with {', '.join((*WORKLOAD, *CLASS))}, or classes", "workload")
    workload = _mapping(data["workload"], "workload")
    _known(workload, (*WORKLOAD, *CLASS, "classes"), ("workload",))
    long = {key: workload[key] for key in WORKLOAD if key in workload}
    short = {key: workload[key] for key in CLASS if key in workload}
    if "classes" not in workload:
        origins.move(("workload", "classes", "default"), ("workload",))
        return {**long, "classes": {"default": short}}
    if short:
        key = next(iter(short))
        raise Complaint(
            f"is shorthand for one class, and this workload has classes: write it under workload.classes.LABEL.{key}",
            "workload",
            key,
        )
    return {**long, "classes": _labelled(workload["classes"], "workload", "classes", least=1)}


def _policy(data: dict[str, Any], policies: dict[str, Any], chosen: str | None) -> tuple[Any, Path]:
    if chosen is not None:
        return choose(chosen, policies), chosen_path(chosen, policies)
    if data.get("policy") is not None:
        return data["policy"], ("policy",)
    if policies:
        label = next(iter(policies))
        return policies[label], ("policies", label)
    return DEFAULT_POLICY, ("policy",)


def choose(word: str, policies: dict[str, Any]) -> Any:
    """The policy that a word stands for: a label of `policies` first, else a registered name with its defaults."""
    if word in policies:
        return policies[word]
    if word in registry.names("policy"):
        return {"name": word}
    raise Complaint(f"unknown policy {word!r}; {suggest(word, dict.fromkeys((*policies, *registry.names('policy'))))}")


def chosen_path(word: str, policies: dict[str, Any]) -> Path:
    """What messages call a policy that was asked for from outside the file."""
    return ("policies", word) if word in policies else (f"policy {word}",)


def _cluster(data: dict[str, Any], policy: tuple[Any, Path], forced: bool, origins: Origins) -> Any:
    common = {**{key: data[key] for key in PER_POOL if key in data}, "policy": policy[0]}
    if data.get("cluster") is None:
        only: dict[str, Any] = {**{key: data[key] for key in ("gpu", "replicas") if key in data}, **common}
        _needed(only)
        origins.move(("cluster", "pools", "main"), ())
        origins.move(("cluster", "pools", "main", "policy"), policy[1])
        origins.move(("cluster", "router"), ("router",))
        return {"router": data.get("router", DEFAULT_ROUTER), "pools": {"main": only}}
    for key in ONE_POOL:
        if key in data:
            where = "cluster.router" if key == "router" else f"cluster.pools.LABEL.{key}"
            raise Complaint(f"is shorthand for one pool, and this scenario has cluster: write it as {where}", key)
    cluster = _mapping(data["cluster"], "cluster")
    _known(cluster, ("router", "pools"), ("cluster",))
    pools: dict[str, dict[str, Any]] = {}
    for label, pool in _labelled(cluster.get("pools"), "cluster", "pools", least=1).items():
        path: Path = ("cluster", "pools", label)
        _known(_mapping(pool, *path), POOL, path)
        own: dict[str, Any] = {key: value for key, value in pool.items() if not (forced and key == "policy")}
        for key in PER_POOL:
            if key not in own and key in common:
                origins.move((*path, key), policy[1] if key == "policy" else (key,))
        if isinstance(own.get("engine"), dict) and isinstance(common.get("engine"), dict):
            for key in common["engine"].keys() - own["engine"].keys():
                origins.move((*path, "engine", key), ("engine", key))
            own["engine"] = {**common["engine"], **own["engine"]}
        pools[label] = {**common, **own}
        _needed(pools[label], *path)
    return {"router": cluster.get("router", DEFAULT_ROUTER), "pools": pools}


def _needed(pool: dict[str, Any], *path: str | int) -> None:
    for key, what in NEEDED.items():
        if key not in pool:
            raise Complaint(what, *path, key)


def _mapping(value: Any, *path: str | int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Complaint(f"must be a mapping, got {show(value)}", *path)
    return value


def _labelled(value: Any, *path: str, least: int = 0) -> dict[str, Any]:
    """A mapping of labels. They name folders and stand in dotted paths, so they are plain words."""
    data = _mapping(value, *path)
    if len(data) < least:
        raise Complaint(f"must have at least {least} label with its values", *path)
    for label in data:
        if not label or len(label) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in label):
            raise Complaint("a label has up to 64 letters, digits, - and _", *path, label)
    return data


def _known(data: dict[str, Any], keys: tuple[str, ...], path: Path) -> None:
    for key in data:
        if key not in keys:
            raise Complaint(f"unknown key; {suggest(key, keys)}", *path, key)
