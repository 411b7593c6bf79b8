"""The JSON Schema of a scenario, for editors: completion, help and a check while one types.

Made of the same models and registry that check a scenario, so it cannot lag behind them. It describes the short and the
long form in one, and it is more lenient than the check: what only several values together can tell is not in it.
"""

from collections.abc import Iterator
from typing import Any

from . import gpus, models, registry
from .checking import KIND
from .gpus import GPU
from .models import Model
from .scenario import Cluster, Pool, RequestClass, Scenario, Workload
from .shorthand import CLASS

Schema = dict[str, Any]
MAY_BE_NULL = ("cluster", "engine", "policies", "policy", "slo")  # the same as not written


def schema() -> Schema:
    """JSON Schema, draft 2020-12."""
    whole = Scenario.model_json_schema()
    defs: Schema = whole.pop("$defs")
    for kind in registry.PACKAGES:
        defs[kind] = {"anyOf": list(_components(kind, defs))}
    defs["model"] = _named(Model, models.names(), r"[A-Z/]|\.json$", "the path of a config.json, from this file", defs)
    defs["gpu"] = _named(GPU, gpus.names(), "[A-Z-]|^[a-z0-9]+$", "another spelling", defs)

    pool, classes, workload = (defs[each.__name__] for each in (Pool, RequestClass, Workload))
    pool["required"], defs[Cluster.__name__]["required"] = ["gpu"], ["pools"]
    common = {key: pool["properties"][key] for key in ("model", "gpu", "replicas", "engine", "policy")}
    router = {"router": defs[Cluster.__name__]["properties"]["router"]}
    whole["properties"] = {**common, **router, **whole["properties"]}
    whole["required"] = ["workload"]
    workload["properties"] |= {key: classes["properties"][key] for key in CLASS}
    workload["required"] = ["arrivals"]
    for key in MAY_BE_NULL:
        whole["properties"][key] = {"anyOf": [whole["properties"][key], {"type": "null"}]}
    about = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "servesim scenario",
        "description": "What `python -m sim` simulates.",
    }
    plain: Schema = _plain({**whole, **about, "$defs": defs})
    return plain


def _components(kind: str, defs: Schema) -> Iterator[Schema]:
    """Names alone, where no parameter is required, and mappings; of lengths also a plain number."""
    alone = [
        name
        for name in registry.names(kind)
        if not any(row["required"] for row in registry.parameters(registry.get(kind, name)))
    ]
    if alone:
        helps = [f"{name}: {registry.help_line(registry.get(kind, name))}" for name in alone]
        yield {"enum": alone, "description": "\n\n".join(helps)}
    if kind == "lengths":
        yield {"type": "integer", "minimum": 1, "description": "always this many tokens"}
    for name in registry.names(kind):
        cls = registry.get(kind, name)
        made = registry.model_of(cls).model_json_schema()
        defs |= made.pop("$defs", {})
        named = {"const": name, "description": registry.help_line(cls)}
        yield {
            "type": "object",
            "title": name,
            "description": registry.help_line(cls),
            "properties": {"name": named, **made.get("properties", {})},
            "required": ["name", *made.get("required", [])],
            "additionalProperties": False,
        }


def _named(cls: type[Model] | type[GPU], names: list[str], pattern: str, others: str, defs: Schema) -> Schema:
    """A known name, another text, or a mapping, of which a known name fills in what is left out."""
    made = cls.model_json_schema()
    defs |= made.pop("$defs", {})
    made.pop("required", None)
    made["additionalProperties"] = True  # some more keys of a config.json are read too
    return {"anyOf": [{"enum": names}, {"type": "string", "pattern": pattern, "description": others}, made]}


def _plain(value: Any) -> Any:
    """Without pydantic's titles, which only repeat the keys, and with references for the kinds."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if KIND in value:
        return {"$ref": f"#/$defs/{value[KIND]}", **{k: v for k, v in value.items() if k != KIND}}
    found = {}
    for key, item in value.items():
        is_title = key == "title" and isinstance(item, str)
        if not is_title or "const" in value.get("properties", {}).get("name", {}) or "$schema" in value:
            found[key] = _plain(item)
    return found
