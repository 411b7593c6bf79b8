"""A scenario: what a user wrote, checked, resolved to its long form and frozen.

    load("scenarios/x.yaml", ["workload.num_requests=100"])

Nobody writes into a scenario; a run echoes it beside its results (`to_yaml`), from which `load` makes an equal one.
"""

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, ValidationError

from . import consistency, gpus, models, registry, shorthand, yamlfile
from .checking import Parsed, Section, explain
from .errors import Complaint, ScenarioError
from .gpus import GPU
from .models import Model
from .registry import Component

MOST_REQUESTS = 10**9
MOST_SECONDS = 1e9


def _component(kind: str) -> Parsed:
    """A bare name or a mapping."""
    return Parsed(kind, lambda value, _: registry.parse(kind, value))


Lengths = Annotated[Component, _component("lengths")]
LengthPairs = Annotated[Component, _component("length_pairs")]
Policy = Annotated[Component, _component("policy")]
Milliseconds = Annotated[float | None, Field(gt=0, le=MOST_SECONDS)]


class Slo(Section):
    """What a request must keep to count as good; milliseconds."""

    ttft_ms: Milliseconds = None
    tpot_ms: Milliseconds = None
    e2e_ms: Milliseconds = None


class Prefix(Section):
    """Tokens at the start of its prompt that a request shares with others, such as a system prompt.

    They are part of `prompt_tokens`, as in the results and in traces; a prompt that is shorter shares all it has. What
    vLLM's benchmark calls --random-prefix-len p and --random-input-len i is tokens p and prompt_tokens p + i.
    """

    tokens: Annotated[int, Field(ge=1, le=10**7, description="tokens that are shared, part of prompt_tokens")]
    groups: Annotated[int, Field(ge=1, le=10**6, description="different prefixes; each request has one of them")] = 1
    popularity: Annotated[
        Literal["uniform", "zipf"], Field(description="all groups alike, or group k as often as k^-exponent")
    ] = "uniform"
    exponent: Annotated[float, Field(ge=0, le=10, description="of zipf: how uneven; 1 is the classic law")] = 1.0


class RequestClass(Section):
    """One kind of request."""

    weight: Annotated[
        float, Field(gt=0, le=1e9, description="share of the requests, relative to the other classes")
    ] = 1.0
    prompt_tokens: Annotated[Lengths | None, Field(description="tokens of the whole prompt, its prefix included")] = (
        None
    )
    output_tokens: Annotated[Lengths | None, Field(description="tokens that a request would give")] = None
    lengths: Annotated[
        LengthPairs | None, Field(description="both lengths jointly, instead of prompt_tokens and output_tokens")
    ] = None
    max_tokens: Annotated[
        int | None, Field(ge=1, le=10**7, description="limit of the output that the engine is told")
    ] = None
    prefix: Prefix | None = None
    samples: Annotated[
        int, Field(ge=1, le=10**6, description="requests in a row that ask the same prompt, each with its own output")
    ] = 1
    priority: Annotated[
        int,
        Field(
            ge=-(10**9),
            le=10**9,
            description="smaller is more urgent, as in vLLM; trtllm, and sglang by default, take the greatest first",
        ),
    ] = 0
    tenant: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=64,
            description="default: the class's label; whose requests they are, for the order `fair`",
        ),
    ] = None
    slo: Slo | None = None


class Workload(Section):
    """When requests come and how long they are."""

    num_requests: Annotated[
        int | None, Field(ge=1, le=MOST_REQUESTS, description="the run ends when all of them have ended")
    ] = None
    duration_s: Annotated[float | None, Field(gt=0, le=MOST_SECONDS, description="the clock stops there, s")] = None
    ignore_eos: Annotated[bool, Field(description="outputs end by length, as in vLLM's benchmark")] = False
    arrivals: Annotated[Component, _component("arrivals"), Field(description="when requests come")]
    classes: Annotated[dict[str, RequestClass], Field(min_length=1, description="kinds of requests by label, mixed")]


class Engine(Section):
    """What all policies of a pool share, under vLLM's names."""

    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024, description="GPUs of a replica")] = 1
    gpu_memory_utilization: Annotated[
        float, Field(gt=0, le=1, description="share of the memory that the engine may use")
    ] = 0.9
    block_size: Annotated[int, Field(ge=1, le=4096, description="tokens of a KV block")] = 16
    max_model_len: Annotated[int | None, Field(ge=1, le=10**9, description="longest prompt + output, tokens")] = None
    enable_prefix_caching: Annotated[bool, Field(description="KV blocks of equal prefixes are computed once")] = True
    num_gpu_blocks_override: Annotated[
        int | None, Field(ge=2, le=10**9, description="KV blocks, null block included")
    ] = None
    weight_dtype: Annotated[
        Literal["bf16", "fp8", "int8", "int4"],
        Field(description="of the layers' weights; int8, int4, and fp8 where the GPU has none, compute in bf16"),
    ] = "bf16"
    kv_cache_dtype: Annotated[
        Literal["auto", "bf16", "fp8", "int8"], Field(description="of keys and values; auto: bf16")
    ] = "auto"
    kv_cache_memory_bytes: Annotated[
        int | None, Field(ge=1, le=10**15, description="KV memory per GPU, instead of the estimate")
    ] = None
    sampler: Annotated[
        Literal["triton", "sort"], Field(description="top-p over the logits; vLLM up to 0.15 sorts, at 40 bytes each")
    ] = "triton"


class Pool(Section):
    """Like replicas: one engine each."""

    role: Annotated[Literal["mixed"], Field(description="what its replicas do")] = "mixed"
    replicas: Annotated[int, Field(ge=1, le=100_000, description="engines, each with tensor_parallel_size GPUs")] = 1
    gpu: Annotated[
        GPU,
        Parsed("gpu", lambda value, _: gpus.parse(value)),
        Field(description="a name, or a mapping with its values"),
    ]
    model: Annotated[
        Model, Parsed("model", models.parse), Field(description="a name, the path of a config.json, or a mapping")
    ]
    engine: Engine = Engine()
    policy: Policy


class Cluster(Section):
    """Pools of replicas, and who chooses among them."""

    router: Annotated[Component, _component("router"), Field(description="which replica a request is sent to")]
    pools: Annotated[dict[str, Pool], Field(min_length=1, description="pools by label")]


class Scenario(Section):
    """The long form. Two are equal if all their values are; where they were written does not count."""

    name: Annotated[
        str, Field(min_length=1, max_length=200, description="names the results; default: that of the file")
    ] = "scenario"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="the same seed gives the same bytes")] = 0
    replications: Annotated[int, Field(ge=1, le=10_000, description="runs with draws of their own, for intervals")] = 1
    warmup_s: Annotated[
        Annotated[float, Field(ge=0, le=MOST_SECONDS)] | Literal["auto"],
        Field(description="requests that arrive before are not counted, s; auto: the cut that MSER-5 finds"),
    ] = 0.0
    fast_forward: Annotated[
        bool, Field(description="like steps are simulated as one event; the records are the same")
    ] = True
    workload: Workload
    cluster: Cluster
    policies: dict[str, Policy] = Field(default_factory=dict, description="policies by label, for `compare`")
    cost: Annotated[Component, _component("cost"), Field(description="what a step costs")]
    slo: Annotated[Slo, Field(description="what a request must keep to count as good")] = Slo()

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
        if self._label:
            return self._label
        runs = next(iter(self.cluster.pools.values())).policy
        for label, policy in self.policies.items():
            written = ((key, value) for key, value in policy.params.items() if value is not None)
            if policy.name == runs.name and all(runs.params[key] == value for key, value in written):
                return label
        return runs.name

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
        if found.path[-2:-1] == ("engine",):
            found = registry.hinted(found, registry.elsewhere_than_engine(str(found.path[-1])))
        raise document.error(origins(found.path), found.what) from None
    scenario._document, scenario._origins = document, origins
    scenario._folder = path.parent.absolute()  # a run in another process may have another working directory
    scenario._label = policy
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
