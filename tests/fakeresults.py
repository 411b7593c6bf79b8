"""Result folders for the tests of metrics and analysis: deterministic, and made without the simulator.

`table_of` fills hand-written rows up to whole tables, `serve` is a toy engine that obeys the columns' definitions,
`write` puts its tables into a folder of the right shape, `bulk` makes tables of any size for timings.
"""

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sim.metrics import summarise

TEXT, INT, SMALL, REAL = pa.string(), pa.int64(), pa.int32(), pa.float64()
SCHEMAS = {
    "requests": pa.schema(
        [("request_id", TEXT), ("class", TEXT), ("pool", TEXT), ("replica", SMALL), ("status", TEXT), ("reason", TEXT)]
        + [("priority", INT)]
        + [(name, REAL) for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s")]
        + [(name, INT) for name in ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions", "attempts")]
        + [(f"{part}_s", REAL) for part in ("queue", "prefill", "decode", "preempted", "transfer", "retry")]
    ),
    "spans": pa.schema(
        [("request_id", TEXT), ("engine", SMALL), ("lane", SMALL)]
        + [(name, INT) for name in ("first_step", "first_tick", "ticks", "tokens")]
    ),
    "steps": pa.schema(
        [("engine", SMALL), ("lane", SMALL), ("step", INT), ("tick", INT)]
        + [(name, REAL) for name in ("decided_s", "start_s", "end_s")]
        + [(name, SMALL) for name in ("seqs", "emitted", "prefill_tokens", "decode_tokens")]
        + [("context_tokens", INT)]
        + [(name, SMALL) for name in ("kv_blocks_used", "waiting", "preempted")]
    ),
}
ABSENT = {"first_step", "tick", "reason", "replica", "first_scheduled_s", "first_token_s", "finish_s"} | {
    f"{part}_s" for part in ("queue", "prefill", "decode", "preempted", "transfer", "retry")
}
DEFAULTS = {"class": "default", "pool": "main", "status": "finished", "attempts": 1}


def table_of(kind: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with some of the columns of `kind`; what is left out is null where it may be, else 0 or the usual value."""
    columns = {}
    for column in SCHEMAS[kind]:
        usual = DEFAULTS.get(column.name, None if column.name in ABSENT else 0)
        columns[column.name] = pa.array([row.get(column.name, usual) for row in rows], column.type)
    return pa.table(columns, schema=SCHEMAS[kind])


@dataclass
class Tables:
    requests: pa.Table
    spans: pa.Table
    steps: pa.Table
    end_s: float
    kv_blocks_total: dict[int, int]
    streamed: bool = True

    def summarise(self, **options: Any) -> dict[str, Any]:
        options = {"end_s": self.end_s, "kv_blocks_total": self.kv_blocks_total, "streamed": self.streamed} | options
        return summarise(self.requests, self.spans, self.steps, **options)


@dataclass
class _Sequence:
    index: int
    arrival_s: float
    prompt: int
    output: int
    made: int = 0
    preemptions: int = 0
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finish_s: float | None = None
    prefill_s: float = 0.0
    preempted_s: float = 0.0
    since_s: float = 0.0  # when it was preempted
    spans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        return -(-(self.prompt + self.made + 1) // 16)


def serve(
    *,
    requests: int = 200,
    rate_per_s: float = 8.0,
    seed: int = 1,
    policy: str = "vllm",
    max_num_seqs: int = 32,
    kv_blocks: int = 4000,
    engines: int = 1,
    step_s: float = 0.012,
    reject_all: bool = False,
    until_s: float | None = None,
) -> Tables:
    """A toy continuous batcher ("vllm") or static batcher ("static", delivers at the end of a batch)."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate_per_s, requests))
    prompts = np.clip(rng.lognormal(5.5, 0.8, requests).astype(int), 4, 2000)
    outputs = np.clip(rng.lognormal(4.0, 0.8, requests).astype(int), 1, 600)
    every = [
        _Sequence(i, float(t), int(p), int(o))
        for i, (t, p, o) in enumerate(zip(arrivals, prompts, outputs, strict=True))
    ]
    steps: list[dict[str, Any]] = []
    if not reject_all:
        for engine in range(engines):
            toy = _continuous if policy == "vllm" else _static
            noise = np.random.default_rng([seed, engine])
            steps += toy(engine, every[engine::engines], max_num_seqs, kv_blocks, step_s, until_s, noise)
    ends = [step["end_s"] for step in steps] + [sequence.arrival_s for sequence in every]
    rows = [_request_row(sequence, engines, reject_all) for sequence in every]
    spans = [span for sequence in every for span in sequence.spans]
    return Tables(
        requests=table_of("requests", rows),
        spans=table_of("spans", spans),
        steps=table_of("steps", steps),
        end_s=max(ends) if until_s is None else until_s,
        kv_blocks_total=dict.fromkeys(range(engines), kv_blocks),
        streamed=policy == "vllm",
    )


def _continuous(
    engine: int,
    sequences: list[_Sequence],
    seats: int,
    kv_blocks: int,
    step_s: float,
    until_s: float | None,
    noise: np.random.Generator,
) -> list[dict[str, Any]]:
    coming, waiting, running = deque(sequences), deque[_Sequence](), list[_Sequence]()
    steps: list[dict[str, Any]] = []
    now, tick = 0.0, 0
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0].arrival_s)
        while coming and coming[0].arrival_s <= now:
            waiting.append(coming.popleft())
        preempted = 0
        used = sum(sequence.blocks for sequence in running)
        while used > kv_blocks and len(running) > 1:
            victim = running.pop()
            used -= victim.blocks
            victim.preemptions += 1
            victim.since_s = now
            waiting.appendleft(victim)
            preempted += 1
        decodes = list(running)
        admitted: list[_Sequence] = []
        budget = 2048 - len(decodes)
        while waiting and not preempted and len(running) < seats and used + waiting[0].blocks <= kv_blocks:
            if admitted and waiting[0].prompt + waiting[0].made > budget:
                break
            chosen = waiting.popleft()
            budget -= chosen.prompt + chosen.made
            used += chosen.blocks
            admitted.append(chosen)
            running.append(chosen)
        prefill = sum(sequence.prompt + sequence.made for sequence in admitted)
        end = now + (step_s + 2e-4 * len(decodes) + 5e-5 * prefill) * float(noise.lognormal(0, 0.05))
        if until_s is not None and end > until_s:
            break
        for sequence in decodes:
            span = sequence.spans[-1]
            span["ticks"] += 1
            span["tokens"] += 1
            if span["ticks"] == 1:
                span["first_tick"] = tick
            sequence.made += 1
        for sequence in admitted:
            if sequence.first_scheduled_s is None:
                sequence.first_scheduled_s, sequence.first_token_s, sequence.prefill_s = now, end, end - now
            else:
                sequence.preempted_s += end - sequence.since_s
            row = {
                "request_id": str(sequence.index),
                "engine": engine,
                "first_step": len(steps),
                "tokens": 1,
                "ticks": 0,
            }
            sequence.spans.append(row | {"first_tick": tick + bool(decodes)})
            sequence.made += 1
        steps.append(
            {"engine": engine, "step": len(steps), "tick": tick if decodes else None, "decided_s": now, "start_s": now}
            | {"end_s": end, "seqs": len(running), "emitted": len(running), "prefill_tokens": prefill}
            | {"decode_tokens": len(decodes), "context_tokens": 16 * used, "kv_blocks_used": used}
            | {"waiting": len(waiting), "preempted": preempted}
        )
        tick += bool(decodes)
        for sequence in running:
            if sequence.made == sequence.output:
                sequence.finish_s = end
        running = [sequence for sequence in running if sequence.finish_s is None]
        now = end
    return steps


def _static(
    engine: int,
    sequences: list[_Sequence],
    seats: int,
    kv_blocks: int,
    step_s: float,
    until_s: float | None,
    noise: np.random.Generator,
) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    now, tick, head = 0.0, 0, 0
    while head < len(sequences):
        start = max(now, sequences[min(head + seats, len(sequences)) - 1].arrival_s)
        start = max(now, min(start, sequences[head].arrival_s + 0.1))  # full, or the oldest has waited 0.1 s
        batch = [sequence for sequence in sequences[head : head + seats] if sequence.arrival_s <= start]
        arrived = sum(sequence.arrival_s <= start for sequence in sequences[head:])
        padded = max(sequence.prompt for sequence in batch) * len(batch)
        first_step, first_tick, now = len(steps), tick, start
        for number in range(max(sequence.output for sequence in batch)):
            cost = step_s + 2e-4 * len(batch) + (5e-5 * padded if number == 0 else 0.0)
            end = now + cost * float(noise.lognormal(0, 0.05))
            if until_s is not None and end > until_s:
                return steps
            alive = [sequence for sequence in batch if sequence.output > number]
            steps.append(
                {"engine": engine, "step": len(steps), "tick": None if number == 0 else tick, "decided_s": now}
                | {"start_s": now, "end_s": end, "seqs": len(batch), "emitted": len(alive), "preempted": 0}
                | {"prefill_tokens": 0 if number else padded, "decode_tokens": len(batch) if number else 0}
                | {"kv_blocks_used": min(kv_blocks, sum(s.blocks + number // 16 for s in batch))}
                | {"waiting": arrived - len(batch), "context_tokens": padded + number * len(batch)}
            )
            tick += number > 0
            if number == 0:
                for sequence in batch:
                    sequence.first_scheduled_s, sequence.prefill_s = start, end - start
            now = end
        for sequence in batch:
            sequence.made = sequence.output
            sequence.first_token_s = sequence.finish_s = now
            sequence.spans.append(
                {"request_id": str(sequence.index), "engine": engine, "first_step": first_step}
                | {"first_tick": first_tick, "ticks": sequence.output - 1, "tokens": sequence.output}
            )
        head += len(batch)
    return steps


def _request_row(sequence: _Sequence, engines: int, rejected: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "request_id": str(sequence.index),
        "arrival_s": sequence.arrival_s,
        "prompt_tokens": sequence.prompt,
        "output_tokens": sequence.made,
        "preemptions": sequence.preemptions,
        "replica": sequence.index % engines,
    }
    if rejected:
        return row | {"status": "rejected", "reason": "prompt does not fit", "replica": None, "attempts": 0}
    row |= {"first_scheduled_s": sequence.first_scheduled_s, "first_token_s": sequence.first_token_s}
    if sequence.finish_s is None or sequence.first_scheduled_s is None:
        return row | {"status": "unfinished"}
    parts = {"queue_s": sequence.first_scheduled_s - sequence.arrival_s, "prefill_s": sequence.prefill_s}
    parts |= {"preempted_s": sequence.preempted_s, "transfer_s": 0.0, "retry_s": 0.0}
    spent = sequence.finish_s - sequence.arrival_s
    return row | parts | {"finish_s": sequence.finish_s, "decode_s": spent - sum(parts.values())}


def write(
    folder: Path,
    tables: Tables,
    *,
    policy: str = "vllm",
    rate_per_s: float | None = 8.0,
    slo: dict[str, float] | None = None,
    seed: int = 1,
    note: str = "",
    name: str = "chatbot",
    gpu: str = "h100_sxm",
) -> Path:
    """A result folder with these tables."""
    folder.mkdir(parents=True)
    for kind in SCHEMAS:
        pq.write_table(getattr(tables, kind), folder / f"{kind}.parquet")
    slo = {"ttft_ms": 500.0, "tpot_ms": 50.0} if slo is None else slo
    summary = tables.summarise(slo={"": slo}, note=note)
    summary |= {"policy": policy, "rate_per_s": rate_per_s}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False))
    (folder / "scenario.yaml").write_text(
        yaml.safe_dump(scenario(policy, rate_per_s, slo, seed, name, gpu), sort_keys=False)
    )
    (folder / "run.json").write_text(json.dumps({"servesim": "0.1.0", "wall_s": 0.5, "steps": tables.steps.num_rows}))
    return folder


def scenario(
    policy: str, rate_per_s: float | None, slo: dict[str, float], seed: int, name: str, gpu: str
) -> dict[str, Any]:
    """The long form, as a run writes it."""
    lengths = {"name": "lognormal", "mean": 330, "cv": 0.9, "max": 2000}
    outputs = {"name": "lognormal", "mean": 75, "cv": 0.9, "max": 600}
    pool = {
        "role": "mixed",
        "replicas": 1,
        "gpu": {"name": gpu, "memory_gib": 79.1},
        "model": {"name": "llama-3.1-8b", "num_hidden_layers": 32},
        "engine": {"tensor_parallel_size": 1, "gpu_memory_utilization": 0.9, "block_size": 16},
        "policy": {"name": "static" if policy.startswith("static") else "vllm"},
    }
    return {
        "name": name,
        "seed": seed,
        "warmup_s": 0.0,
        "workload": {
            "num_requests": 200,
            "arrivals": {"name": "poisson", "rate_per_s": rate_per_s},
            "classes": {"default": {"weight": 1.0, "prompt_tokens": lengths, "output_tokens": outputs}},
        },
        "cluster": {"router": {"name": "round_robin"}, "pools": {"main": pool}},
        "cost": {"name": "roofline", "calibration": "ideal"},
        "slo": slo,
    }


def bulk(requests: int, steps: int, seed: int = 1, in_batch: int = 40) -> Tables:
    """Tables of a plausible shape and any size, for timings: one engine, one span a request."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.lognormal(-4.4, 0.1, steps))
    ticks_each = max(1, steps * in_batch // requests)
    first = np.sort(rng.integers(0, max(1, steps - 2 * ticks_each - 1), requests))
    ticks = rng.integers(1, 2 * ticks_each, requests)
    arrival = np.maximum(0.0, ends[first] - 0.2)
    arrival.sort()
    first_token, finish = ends[first], ends[np.minimum(first + ticks, steps - 1)]
    zeros = np.zeros(requests)
    ids = pa.array(np.arange(requests)).cast(TEXT)

    def same(value: Any, kind: pa.DataType, count: int = requests) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), count)

    def empty(kind: str, count: int) -> dict[str, Any]:
        return {column.name: same(None if column.type == TEXT else 0, column.type, count) for column in SCHEMAS[kind]}

    table = empty("requests", requests) | {"request_id": ids, "class": same("default", TEXT)}
    table |= {"status": same("finished", TEXT), "arrival_s": arrival, "first_scheduled_s": arrival + 0.1}
    table |= {"first_token_s": first_token, "finish_s": finish, "output_tokens": ticks + 1}
    table |= {"prompt_tokens": rng.integers(1, 1024, requests)}
    table |= {"queue_s": zeros + 0.1, "prefill_s": first_token - arrival - 0.1, "decode_s": finish - first_token}
    spans = empty("spans", requests) | {"request_id": ids, "first_step": first, "first_tick": first + 1}
    spans |= {"ticks": ticks, "tokens": ticks + 1}
    clock = empty("steps", steps) | {"step": np.arange(steps), "tick": np.arange(steps)}
    clock |= {"end_s": ends, "start_s": np.append(0.0, ends[:-1])}
    clock |= {"seqs": pa.array(rng.integers(1, 2 * in_batch, steps), SMALL)}
    clock |= {"emitted": clock["seqs"], "kv_blocks_used": clock["seqs"], "decided_s": clock["start_s"]}
    made = {"requests": table, "spans": spans, "steps": clock}
    whole = {
        kind: pa.table([made[kind][name] for name in schema.names], schema=schema) for kind, schema in SCHEMAS.items()
    }
    return Tables(end_s=float(ends[-1]), kv_blocks_total={0: 4000}, **whole)
