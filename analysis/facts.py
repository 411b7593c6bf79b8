"""What was simulated, in a few words: the heading of a report, from the resolved scenario."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .load import Run, name_of

Scenario = dict[str, Any]


def title(runs: Sequence[Run]) -> str:
    """The scenario's name; several, where the runs are of several."""
    names = list(dict.fromkeys(str(run.scenario.get("name") or "simulation") for run in runs))
    return " · ".join(names)


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(what, value) pairs; where runs differ, all values."""
    made = [(what, _joined(tell, [run.scenario for run in runs])) for what, tell in _FACTS]
    rates = {run.rate_per_s for run in runs}
    if len(rates) > 1:
        listed = ", ".join(f"{rate:g}" for rate in sorted(rate for rate in rates if rate is not None))
        processes = _joined(lambda scenario: _process(_arrivals(scenario)), [run.scenario for run in runs])
        made = [(what, f"{processes}, {listed} requests/s" if what == "Traffic" else value) for what, value in made]
    counts = sorted({int(run.summary.get("requests") or 0) for run in runs})
    made.append(("Requests", _from_to(counts) + (" in each run" if len(runs) > 1 else "")))
    tokens = sorted({int(run.summary.get("kv_tokens") or 0) for run in runs} - {0})
    made.insert(2, ("KV cache", f"{_from_to(tokens)} tokens a replica" if tokens else ""))
    warmups = sorted({run.warmup_s for run in runs})
    if warmups != [0.0]:
        made.append(("Warm-up cut", ", ".join(f"{warmup:g} s" for warmup in warmups)))
    made.append(("Seed", _joined(lambda scenario: _text(scenario.get("seed")), [run.scenario for run in runs])))
    versions = dict.fromkeys(str(run.info["servesim"]) for run in runs if run.info.get("servesim"))
    made.append(("Simulated with", ", ".join(f"servesim {version}" for version in versions)))
    return [(what, value) for what, value in made if value]


def _from_to(ordered: Sequence[int]) -> str:
    return f"{ordered[0]:,}" + (f" to {ordered[-1]:,}" if len(ordered) > 1 else "")


def _joined(tell: Callable[[Scenario], str], scenarios: Sequence[Scenario]) -> str:
    return " / ".join(dict.fromkeys(text for text in map(tell, scenarios) if text))


def _pools(scenario: Scenario) -> dict[str, Scenario]:
    return (scenario.get("cluster") or {}).get("pools") or {"main": scenario}


def _model(scenario: Scenario) -> str:
    return " + ".join(dict.fromkeys(name_of(pool.get("model")) or "" for pool in _pools(scenario).values()))


def _gpus(scenario: Scenario) -> str:
    told = []
    for pool in _pools(scenario).values():
        engine = pool.get("engine") or {}
        parallel, replicas = int(engine.get("tensor_parallel_size") or 1), int(pool.get("replicas") or 1)
        name = name_of(pool.get("gpu")) or "?"
        shared = f", tensor parallel {parallel}" if parallel > 1 else ""
        told.append(
            f"{parallel * replicas} × {name}" + (f" ({replicas} replicas{shared})" if replicas > 1 or shared else "")
        )
    return " + ".join(told)


def _arrivals(scenario: Scenario) -> Any:
    return (scenario.get("workload") or {}).get("arrivals") or {}


def _process(arrivals: Any) -> str:
    name = name_of(arrivals) or ""
    if isinstance(arrivals, dict) and name == "trace":
        return f"trace {Path(str(arrivals.get('file', ''))).name}"
    return name.replace("_", " ").capitalize()


def _traffic(scenario: Scenario) -> str:
    arrivals = _arrivals(scenario)
    if not isinstance(arrivals, dict):
        return _process(arrivals)
    hidden = ("name", "file", "rescale", "points")
    told = [f"{_text(arrivals['rate_per_s'])} requests/s"] if arrivals.get("rate_per_s") is not None else []
    told += [
        f"{key.removesuffix('_s').replace('_', ' ')} {_text(value)}{' s' if key.endswith('_s') else ''}"
        for key, value in arrivals.items()
        if key not in (*hidden, "rate_per_s") and value not in (None, 1, False)
    ]
    return ", ".join([_process(arrivals), *told])


def _lengths(scenario: Scenario) -> str:
    workload = scenario.get("workload") or {}
    classes = workload.get("classes") or {"": workload}
    told = []
    for label, each in classes.items():
        prompt, output, pairs = each.get("prompt_tokens"), each.get("output_tokens"), each.get("lengths")
        name = f"{label}: " if len(classes) > 1 else ""
        if isinstance(pairs, dict):
            told.append(f"{name}both from {Path(str(pairs.get('file', ''))).name}")
        if prompt is not None and output is not None:
            told.append(f"{name}{_length(prompt)} prompt, {_length(output)} output tokens")
    if not told and name_of(_arrivals(scenario)) == "trace":
        return "from the trace"
    return "; ".join(told)


def _shared(scenario: Scenario) -> str:
    """What prompts have in common."""
    classes = (scenario.get("workload") or {}).get("classes") or {}
    told = []
    for label, each in classes.items():
        name = f"{label}: " if len(classes) > 1 else ""
        prefix, samples = each.get("prefix"), int(each.get("samples") or 1)
        if isinstance(prefix, dict):
            groups = int(prefix.get("groups") or 1)
            of = f", {groups:,} different ones ({prefix.get('popularity', 'uniform')})" if groups > 1 else ""
            told.append(f"{name}prefix of {_text(prefix.get('tokens'))} tokens{of}")
        if samples > 1:
            told.append(f"{name}{samples:,} samples of each prompt")
    return "; ".join(told)


def _length(lengths: Any) -> str:
    """`lognormal 512 (cv 1)`; a number for what does not vary."""
    if not isinstance(lengths, dict):
        return _text(lengths)
    name = lengths.get("name")
    if name in ("fixed", "integer"):
        return _text(lengths.get("tokens"))
    if name == "uniform":
        return f"uniform {_text(lengths.get('min'))} to {_text(lengths.get('max'))}"
    widths = {"cv": "cv", "std": "std"}
    width = [f"{word} {_text(lengths[key])}" for key, word in widths.items() if lengths.get(key) is not None]
    return f"{name} {_text(lengths.get('mean'))}" + (f" ({width[0]})" if width else "")


def slo(limits: Scenario) -> str:
    """`TTFT ≤ 500 ms, TPOT ≤ 50 ms`."""
    words = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2e_ms": "E2E"}
    return ", ".join(f"{word} ≤ {_text(limits[key])} ms" for key, word in words.items() if limits.get(key) is not None)


def _slos(scenario: Scenario) -> str:
    """The scenario's, then those of its classes."""
    classes = (scenario.get("workload") or {}).get("classes") or {}
    own = [f"{label}: {slo(kind['slo'])}" for label, kind in classes.items() if (kind or {}).get("slo")]
    return "; ".join(text for text in (slo(scenario.get("slo") or {}), *own) if text)


def _text(value: Any) -> str:
    return f"{value:,.10g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value or "")


_FACTS: tuple[tuple[str, Callable[[Scenario], str]], ...] = (
    ("Model", _model),
    ("GPUs", _gpus),
    ("Traffic", _traffic),
    ("Lengths", _lengths),
    ("Shared prompts", _shared),
    ("SLO", _slos),
)
