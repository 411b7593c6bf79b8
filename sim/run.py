"""One simulation: a scenario is assembled, run, and its records are summed up."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from . import registry
from .columns import values_of
from .consistency import check
from .cost.calibration import Calibration
from .cost.roofline import RooflinePricer
from .engine import LIVELOCK, Engine
from .environment import Environment
from .errors import Complaint
from .frontend import FrontEnd, Limits, Progress
from .memory import block_bytes
from .metrics import REQUEST_COLUMNS, SPAN_COLUMNS, STEP_COLUMNS, summarise, summarise_classes
from .policies.base import block_pool, waiting_queue
from .records import RequestLog
from .request import FAILED
from .sinks import Sinks
from .steplog import StepLog
from .streams import streams
from .tables import REQUESTS, SPANS, STEPS, empty
from .utilisation import utilisation
from .workdone import COLUMNS, prompts_within, work_within
from .workload.arrivals import INDEPENDENT
from .workload.outlook import Outlook
from .workload.source import make_source

if TYPE_CHECKING:
    from .consistency import Checked
    from .scenario import Scenario
    from .workload.source import Source

ROUNDING_S = 1e-9  # step ends are sums: what should end as the clock stops may come out a trifle later
NEEDED = {"requests": REQUEST_COLUMNS, "spans": SPAN_COLUMNS, "steps": STEP_COLUMNS}
SCHEMAS = {"requests": REQUESTS, "spans": SPANS, "steps": STEPS}


@dataclass
class Result:
    """What a run gave. `summary` is flat, but for `classes`; the tables are read when they are asked for."""

    scenario: Scenario
    summary: dict[str, Any]
    facts: dict[str, Any]  # what may differ between two equal runs: wall time, decisions
    warnings: list[str]
    sinks: Sinks
    content: list[list[dict[str, Any]]] | None = field(default=None, repr=False)  # of each engine, a row a decision

    @property
    def requests(self) -> pa.Table:
        return self.sinks.table("requests")

    @property
    def spans(self) -> pa.Table:
        return self.sinks.table("spans")

    @property
    def steps(self) -> pa.Table:
        return self.sinks.table("steps")


def simulate(
    scenario: Scenario,
    source: Source | None = None,
    record_content: bool = False,
    check_kv: bool = True,
    *,
    replication: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a scenario.

    source: requests of one's own instead of the scenario's workload. record_content: keep what every step computed.
    check_kv=False: do not refuse prompts that can never fit the KV cache, nor cut outputs there. folder: where the
    three tables are written as they come; without it they stay in memory. progress: called now and then with the
    simulated time in seconds, the requests ended, and how many there will be, where that is known.
    """
    began = time.perf_counter()
    run = _Run(scenario, source, record_content, check_kv, replication, folder, progress)
    with _no_collection():
        run.env.run_before(run.end_s)
        run.close()
    simulated = time.perf_counter()
    summary = run.summary()
    facts = {
        "wall_s": time.perf_counter() - began,
        "simulation_wall_s": simulated - began,
        "decisions": sum(engine.decisions for engine in run.engines),
        "steps": sum(engine.log.steps for engine in run.engines),
        "simulated_s": summary["end_s"],
    }
    content = [engine.log.content or [] for engine in run.engines] if record_content else None
    return Result(scenario, summary, facts, [*run.warnings, *run.source.warnings], run.sinks, content)


class _Run:
    """The parts of one simulation."""

    def __init__(
        self,
        scenario: Scenario,
        source: Source | None,
        record_content: bool,
        check_kv: bool,
        replication: int,
        folder: Path | None,
        progress: Progress | None,
    ) -> None:
        self.scenario, self.replication = scenario, replication
        self.env = Environment()
        self.source = source if source is not None else make_source(scenario, replication)
        (self.label, self.pool), *others = scenario.cluster.pools.items()
        if others:
            what = "a cluster of one pool is all that can be run so far"
            raise scenario.error(Complaint(what, "cluster", "pools", others[0][0]))
        self.checked: Checked = check(scenario)[self.label]
        sizes = self.checked.sizes
        self.warnings = list(sizes.warnings)
        duration_s = scenario.workload.duration_s
        self.end_s = inf if duration_s is None else duration_s
        cut = COLUMNS if scenario.warmup_s else ()
        self.sinks = Sinks(SCHEMAS, self.pool.replicas, folder, {**NEEDED, "steps": (*STEP_COLUMNS, *cut)})
        stream = streams(scenario.seed, replication)
        cost = registry.build("cost", scenario.cost)
        self.engines: list[Engine] = []
        engine = self.pool.engine
        outlook = Outlook(scenario, replication)
        for number in range(self.pool.replicas):
            policy = registry.build("policy", self.pool.policy)
            if hasattr(policy, "begin"):
                policy.begin(block_bytes(self.pool.model, engine))
            self.engines.append(
                Engine(
                    self.env,
                    number,
                    policy,
                    block_pool(policy, sizes.num_gpu_blocks, sizes.block_size, engine.enable_prefix_caching),
                    cost.pricer(
                        self.pool.model,
                        self.pool.gpu,
                        self.pool.engine,
                        stream(f"noise/{number}"),
                        scenario.resolve,
                        getattr(policy, "kernels", "vllm"),
                        getattr(policy, "async_scheduling", False),
                    ),
                    StepLog(number, self.sinks.steps[number].write, record_content),
                    sizes.max_model_len,
                    scenario.fast_forward,
                    waiting=waiting_queue(policy, outlook),
                )
            )
            self.engines[-1].log.count_rows = self.pool.model.is_moe
        self.price = self.engines[0].cost
        self.requests = RequestLog(self.price.response_s, self.sinks.requests.write, self.sinks.spans.write)
        self.requests.end_s = self.end_s + ROUNDING_S
        self.requests.lanes = [(self.label, engine.lane.ends) for engine in self.engines]
        router = registry.build("router", scenario.cluster.router)
        if hasattr(router, "begin"):
            router.begin(stream("router"))
        self.front_end = FrontEnd(
            self.env,
            self.source,
            router,
            self.engines,
            Limits(sizes.max_model_len, sizes.num_gpu_blocks * sizes.block_size if check_kv else inf, sizes.block_size),
            self.requests,
            self.price.front_end_s,
            self.end_s,
            progress,
        )

    def close(self) -> None:
        """The clock has stopped: whatever has not ended gets its row too."""
        failed = []
        for engine in self.engines:
            if engine.stalled:
                why = f"{engine.why}; raise the KV cache"
                if engine.why == LIVELOCK:
                    why = "sequences preempted each other for ever; raise the KV cache or lower max_num_seqs"
                self.warnings.append(
                    f"replica {engine.number} came to a standstill at {engine.lane.ends[-1]:.3f} s: {why}"
                )
                continue
            engine.stop(self.end_s + ROUNDING_S)
            never = getattr(engine.policy, "never", lambda batch: "the KV cache is too small for it")
            for seq in engine.unfinished():
                if self.end_s == inf:
                    seq.status, seq.reason = FAILED, f"it can never be scheduled: {never(engine.lane)}"
                    failed.append(seq)
                self.requests.close(seq)
        for seq in self.front_end.under_way.values():
            self.requests.close(seq)
        if failed:
            self.warnings.append(f"{len(failed):,} failed; the first, {failed[0].request.id}: {failed[0].reason}")
        first = self.front_end.first_rejected
        if first is not None:
            self.warnings.append(f"{self.front_end.rejected:,} rejected; the first, {first.request.id}: {first.reason}")
        self.requests.finish()
        self.sinks.close()

    def _hold_to(self, calibration: Calibration, prompt_tokens: np.ndarray) -> None:
        """A warning where a step was larger than what its price was measured on."""
        most = {"prompt_tokens": int(prompt_tokens.max(initial=0))}
        for engine in self.engines:
            for name, count in engine.log.work.most.items():
                most[name] = max(most.get(name, 0), count)
        if beyond := calibration.ranges.beyond(most):
            self.warnings.append(
                f"beyond the measurements of {calibration.name}, where its rooflines are continued: {'; '.join(beyond)}"
            )

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        scenario, sizes, policy = self.scenario, self.checked.sizes, self.checked.policy
        requests = self.sinks.kept("requests")
        if isinstance(self.price, RooflinePricer):
            self._hold_to(self.price.prices.calibration, values_of(requests["prompt_tokens"]))
        slo = {label: kind.slo.model_dump() for label, kind in scenario.workload.classes.items() if kind.slo}
        streamed = not getattr(policy, "delivers_whole", False)
        tables = (
            requests,
            self.sinks.kept("spans") if streamed else empty(SPANS),
            self.sinks.kept("steps"),
        )
        settings: dict[str, Any] = {
            "end_s": self.end_s if self.end_s < inf else self._last_s(requests),
            "warmup_s": scenario.warmup_s,
            "slo": {"": scenario.slo.model_dump(), **slo},
            "kv_blocks_total": {engine.number: sizes.num_gpu_blocks for engine in self.engines},
            "streamed": streamed,
            "offered_per_s": scenario.rate_per_s if scenario.workload.arrivals.name in INDEPENDENT else None,
        }
        measured = summarise(*tables, **settings, note=self.price.label)
        settings["warmup_s"] = measured["warmup_s"]
        if len(scenario.workload.classes) > 1:  # the one nested value: each class by itself
            settings["warmup_s"] = measured["warmup_s"]
            measured["classes"] = summarise_classes(*tables, list(scenario.workload.classes), **settings)
        return {
            "name": scenario.name,
            "policy": scenario.policy_label,
            "rate_per_s": scenario.rate_per_s,
            "seed": scenario.seed,
            "replication": self.replication,
            "model": self.pool.model.name,
            "gpu": self.pool.gpu.name,
            "tensor_parallel_size": self.pool.engine.tensor_parallel_size,
            "replicas": self.pool.replicas,
            "kv_tokens": sizes.kv_tokens,
            "kv_blocks": sizes.kv_blocks,
            "max_model_len": sizes.max_model_len,
            "response_s": self.price.response_s,
            **measured,
            **self._utilisation(tables[0], tables[2], measured["warmup_s"], measured["end_s"]),
        }

    def _utilisation(self, requests: pa.Table, steps: pa.Table, warmup_s: float, end_s: float) -> dict[str, Any]:
        """MFU and MBU of each replica over the window, by its length and by the time in which it works."""
        found: dict[str, list[float | None]] = {}
        physical = isinstance(self.price, RooflinePricer)  # else steps may be faster than any GPU
        share = prompts_within(requests, warmup_s) if warmup_s and physical else (1.0, 1.0)
        for engine in self.engines:
            work = engine.log.work
            work.prefill_keys, work.prefill_pairs = engine.prefill_keys, engine.prefill_pairs
            if warmup_s and physical:
                work = work_within(steps, engine.number, warmup_s, work, share)
            used = utilisation(self.pool, work)
            for suffix, seconds in (("", max(end_s - warmup_s, work.busy_s)), ("_busy", work.busy_s)):
                for name, value in zip(("mfu", "mbu"), used.over(seconds if physical else 0.0), strict=True):
                    found.setdefault(f"{name}{suffix}_per_replica", []).append(value)
        means = {}
        for key, values in found.items():
            there = [value for value in values if value is not None]
            means[key.removesuffix("_per_replica")] = sum(there) / len(there) if there else None
        return {**means, **found}

    def _last_s(self, requests: pa.Table) -> float:
        """When the last request ended; where some never did, when the last step ended."""
        finish = values_of(requests["finish_s"])
        if len(finish) and not np.isnan(finish).all() and not any(engine.unfinished() for engine in self.engines):
            return float(np.nanmax(finish))
        ends = [engine.lane.ends[-1] for engine in self.engines if engine.lane.ends]
        return float(max([0.0, *ends, *finish[~np.isnan(finish)], *values_of(requests["arrival_s"])]))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's cyclic garbage collector off: a simulation makes no cycles, and scanning live requests costs half the
    speed at 100,000 of them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
