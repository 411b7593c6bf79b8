"""A scenario: what a user wrote, checked, resolved to its long form and frozen.

    load("scenarios/x.yaml", ["workload.num_requests=100"])

Nobody writes into a scenario; a run echoes it beside its results (`to_yaml`), from which `load` makes an equal one.
"""

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, ValidationInfo

from . import consistency, gpus, models, registry, shorthand, yamlfile
from .checking import Section, explain, refusal
from .errors import Complaint, ScenarioError
from .gpus import GPU
from .models import Model
from .registry import Component

MOST_REQUESTS = 10**9
MOST_SECONDS = 1e9


def _component(kind: str) -> BeforeValidator:
    """What a field of this kind takes: a bare name or a mapping."""

    def parse(value: Any) -> Component:
        try:
            return registry.parse(kind, value)
        except Complaint as complaint:
            raise refusal(complaint) from None

    return BeforeValidator(parse)


def _model(value: Any, info: ValidationInfo) -> Model:
    try:
        return models.parse(value, (info.context or {}).get("folder"))
    except Complaint as complaint:
        raise refusal(complaint) from None


def _gpu(value: Any) -> GPU:
    try:
        return gpus.parse(value)
    except Complaint as complaint:
        raise refusal(complaint) from None


Lengths = Annotated[Component, _component("lengths")]
Policy = Annotated[Component, _component("policy")]
Milliseconds = Annotated[float | None, Field(gt=0, le=MOST_SECONDS)]


class Slo(Section):
    """What a request must keep to count as good; milliseconds."""

    ttft_ms: Milliseconds = None
    tpot_ms: Milliseconds = None
    e2e_ms: Milliseconds = None


class RequestClass(Section):
    """One kind of request."""

    weight: Annotated[
        float, Field(gt=0, le=1e9, description="share of the requests, relative to the other classes")
    ] = 1.0
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    max_tokens: Annotated[
        int | None, Field(ge=1, le=10**7, description="limit of the output that the engine is told")
    ] = None
    priority: Annotated[int, Field(ge=-(10**9), le=10**9, description="smaller is more urgent")] = 0
    slo: Slo | None = None


class Workload(Section):
    """When requests come and how long they are."""

    num_requests: Annotated[int | None, Field(ge=1, le=MOST_REQUESTS)] = None
    duration_s: Annotated[float | None, Field(gt=0, le=MOST_SECONDS, description="the clock stops there, s")] = None
    ignore_eos: Annotated[bool, Field(description="outputs end by length, as in vLLM's benchmark")] = False
    arrivals: Annotated[Component, _component("arrivals")]
    classes: Annotated[dict[str, RequestClass], Field(min_length=1)]


class Engine(Section):
    """What all policies of a pool share, under vLLM's names."""

    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024, description="GPUs of a replica")] = 1
    gpu_memory_utilization: Annotated[
        float, Field(gt=0, le=1, description="share of the memory that the engine may use")
    ] = 0.9
    block_size: Annotated[int, Field(ge=1, le=4096, description="tokens of a KV block")] = 16
    max_model_len: Annotated[int | None, Field(ge=1, le=10**9, description="longest prompt + output, tokens")] = None
    enable_prefix_caching: bool = True
    num_gpu_blocks_override: Annotated[
        int | None, Field(ge=2, le=10**9, description="KV blocks, null block included")
    ] = None
    weight_dtype: Literal["bf16", "fp8"] = "bf16"
    kv_cache_dtype: Literal["auto", "bf16", "fp8"] = "auto"
    kv_cache_memory_bytes: Annotated[
        int | None, Field(ge=1, le=10**15, description="KV memory per GPU, instead of the estimate")
    ] = None


class Pool(Section):
    """Like replicas: one engine each."""

    role: Literal["mixed"] = "mixed"
    replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    gpu: Annotated[GPU, BeforeValidator(_gpu)]
    model: Annotated[Model, BeforeValidator(_model)]
    engine: Engine = Engine()
    policy: Policy


class Cluster(Section):
    router: Annotated[Component, _component("router")]
    pools: Annotated[dict[str, Pool], Field(min_length=1)]


class Scenario(Section):
    """The long form. Two are equal if all their values are; where they were written does not count."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "scenario"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    replications: Annotated[int, Field(ge=1, le=10_000)] = 1
    warmup_s: Annotated[
        float, Field(ge=0, le=MOST_SECONDS, description="requests that arrive before are not counted, s")
    ] = 0.0
    fast_forward: Annotated[
        bool, Field(description="like steps are simulated as one event; the records are the same")
    ] = True
    workload: Workload
    cluster: Cluster
    policies: dict[str, Policy] = Field(default_factory=dict)
    cost: Annotated[Component, _component("cost")]
    slo: Slo = Slo()

    _document: yamlfile.Document = PrivateAttr()
    _origins: shorthand.Origins = PrivateAttr()
    _folder: FilePath = PrivateAttr()
    _label: str | None = PrivateAttr(default=None)
    _rate_per_s: float | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @property
    def policy_label(self) -> str:
        """What results call the policy: its label among `policies`, else its name."""
        return self._label or next(iter(self.cluster.pools.values())).policy.name

    @property
    def rate_per_s(self) -> float | None:
        """Requests a second that were asked for; None where arrivals have no rate, as in a trace at its own."""
        rate = self.workload.arrivals.params.get("rate_per_s")
        return self._rate_per_s if rate is None else float(rate)

    def resolve(self, path: str) -> FilePath:
        """The real path of a file that the scenario names, relative to the scenario's own file."""
        return self._folder / path

    def error(self, complaint: Complaint) -> ScenarioError:
        """The message for a complaint about a value of this scenario, its path in the long form."""
        return self._document.error(self._origins(complaint.path), complaint.what)

    def with_policy(self, word: str) -> "Scenario":
        """All pools under one policy: a label of `policies`, else a registered name with its defaults."""
        try:
            policy = registry.parse("policy", shorthand.choose(word, self.policies))
        except Complaint as complaint:
            raise ScenarioError(f"{self._document.name}: {complaint.what}") from None
        pools = {label: pool.model_copy(update={"policy": policy}) for label, pool in self.cluster.pools.items()}
        changed = self.model_copy(update={"cluster": self.cluster.model_copy(update={"pools": pools})})
        changed._origins = self._origins.copy()
        for label in pools:
            changed._origins.move(("cluster", "pools", label, "policy"), shorthand.chosen_path(word, self.policies))
        changed._label = word
        return _settled(changed)

    def with_rate(self, rate_per_s: float) -> "Scenario":
        """The same requests at another mean rate, requests/s. ScenarioError if there is none (closed loop, batch)."""
        try:
            arrivals = consistency.at_rate(self, rate_per_s)
        except Complaint as complaint:
            raise self.error(complaint.under("workload", "arrivals")) from None
        changed = self.model_copy(update={"workload": self.workload.model_copy(update={"arrivals": arrivals})})
        changed._rate_per_s = rate_per_s
        return _settled(changed)

    def to_yaml(self) -> str:
        """The long form as YAML. File names stay as written, so that equal scenarios give equal bytes in any folder."""
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text: str = yaml.dump(_plain(self), Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
        return text


def load(path: FilePath | str, overrides: list[str] | tuple[str, ...] = (), policy: str | None = None) -> Scenario:
    """The scenario in a file, after `key.path=value` overrides, under one of its policies (see `with_policy`)."""
    return _scenario(yamlfile.read(path), FilePath(path), overrides, policy)


def load_text(
    text: str, name: str = "scenario.yaml", overrides: list[str] | tuple[str, ...] = (), policy: str | None = None
) -> Scenario:
    """The scenario in a text; `name` is the file it could be in: for messages, and for relative paths."""
    return _scenario(yamlfile.mapping(text, name), FilePath(name), overrides, policy)


def from_mapping(
    data: dict[str, Any], name: str = "scenario", overrides: list[str] | tuple[str, ...] = (), policy: str | None = None
) -> Scenario:
    """The scenario in a mapping, short or long form."""
    return _scenario(yamlfile.Document(name, dict(data), {(): name}), FilePath(name), overrides, policy)


def _scenario(
    document: yamlfile.Document, path: FilePath, overrides: list[str] | tuple[str, ...], policy: str | None
) -> Scenario:
    for override in overrides:
        document.set(override, shorthand.named(document.data))
    origins = shorthand.Origins()
    try:
        long, origins = shorthand.expand(document.data, policy)
        long.setdefault("name", path.stem)
        scenario = Scenario.model_validate(long, context={"folder": path.parent})
    except Complaint as complaint:
        raise document.error(complaint.path, complaint.what) from None
    except ValidationError as error:
        found = explain(error, Scenario, long)
        raise document.error(origins(found.path), found.what) from None
    scenario._document, scenario._origins = document, origins
    scenario._folder = path.parent.absolute()  # a run in another process may have another working directory
    return _settled(scenario)


def _settled(scenario: Scenario) -> Scenario:
    """With the policies' defaults for their GPUs filled in, and checked as a whole."""
    try:
        settled = consistency.with_gpu_defaults(scenario)
        consistency.check(settled)
    except Complaint as complaint:
        raise scenario.error(complaint) from None
    return settled


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return {k: _plain(v) for k, v in value.plain().items()}
    if isinstance(value, Section):
        pairs = ((k, getattr(value, k)) for k in type(value).model_fields)
        return {k: _plain(v) for k, v in pairs if v is not None and not (k in ("policies", "slo") and not _plain(v))}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
