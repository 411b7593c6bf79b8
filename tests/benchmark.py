"""How fast the simulator is: `python tests/benchmark.py [--only a] [--requests N] [--json]`. Not part of the test run.

`--shares N` compares policies instead: N rounds, in each of which every policy runs right after vllm, in CPU time,
which other work on the machine disturbs less.

Each row runs in a process of its own, with everything recorded and written to a temporary folder:

a  the standard work (scenarios/standard_work.yaml), with 1,000 / 10,000 / 100,000 / 1,000,000 requests
b  the same at 85 % of what one replica can do
c  16 replicas under least_requests, 100,000 requests
d  a KV cache so tight that requests are preempted all the time
e  prefix caching with shared prefixes: 64 system prompts of 256 tokens
and one a policy, by its name: the standard work under it, with max_model_len 1024, since some reserve that much

requests/s is over the wall time from the loaded scenario to the written results; start-up is what a whole process takes
to simulate one request; SimPy's bare timeouts/s are measured in the same process, for scale.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sim import registry  # noqa: E402

STANDARD = ROOT / "scenarios" / "standard_work.yaml"
ROWS: dict[str, tuple[int, ...]] = {
    "a": (1_000, 10_000, 100_000, 1_000_000),
    "b": (10_000,),
    "c": (100_000,),
    "d": (10_000,),
    "e": (10_000,),
}
TITLES = {
    "a": "standard work, 10 requests/s",
    "b": "85 % of capacity",
    "c": "16 replicas, least_requests",
    "d": "tight KV, preemptions",
    "e": "shared prefixes",
}
POLICIES = registry.names("policy")
ROWS |= dict.fromkeys(POLICIES, (10_000,))
TITLES |= dict.fromkeys(POLICIES, "standard work, max length")
COLUMNS = (
    ("requests_per_s", "requests/s"),
    ("output_tokens_per_s", "tokens/s"),
    ("steps_per_s", "steps/s"),
    ("decisions_per_s", "decisions/s"),
    ("decisions_per_request", "decisions/request"),
    ("peak_mib", "peak MiB"),
    ("start_up_s", "start-up s"),
    ("simpy_timeouts_per_s", "SimPy timeouts/s"),
)


def changes(row: str, requests: int) -> list[str]:
    """What differs from the standard work."""
    made = [f"workload.num_requests={requests}"]
    if row == "b":
        made.append(f"workload.arrivals.rate_per_s={0.85 * capacity():.3f}")
    if row == "c":
        made += ["replicas=16", "router=least_requests", "workload.arrivals.rate_per_s=160"]
    if row == "d":
        made += ["engine.num_gpu_blocks_override=641", "engine.max_model_len=1024", "workload.arrivals.rate_per_s=24"]
        made += ["policy.max_num_seqs=64"]
    if row in POLICIES:
        made += [f"policy={row}", "engine.max_model_len=1024"]
    return made


def capacity() -> float:
    """Requests per second that one replica finishes when it never lacks any."""
    import sim

    overrides = ["workload.num_requests=4000", "workload.arrivals=batch", "cost.noise=false"]
    return float(sim.simulate(sim.load(STANDARD, overrides)).summary["request_throughput"])


def shared_prefixes(scenario: Any) -> Any:
    """The standard work's source, but half of each prompt is one of 64 system prompts."""
    from sim.workload.source import Fixed, make_source

    source = make_source(scenario)

    def requests() -> Iterator[Any]:
        while (request := source.next()) is not None:
            group = request.index * 2654435761 % 4294967296 % 64
            request.prefix = ((f"system-{group}", 256),)
            yield request

    return Fixed(requests(), source.total)


def measure(row: str, requests: int) -> dict[str, Any]:
    """One row, in this process."""
    import simpy

    import sim
    from sim import results

    scenario = sim.load(STANDARD, changes(row, requests))
    source = shared_prefixes(scenario) if row == "e" else None
    with tempfile.TemporaryDirectory() as temporary:
        began, began_cpu = time.perf_counter(), time.process_time()
        if source is None:
            made: Any = results.run(results.Job(scenario, Path(temporary)))
        else:
            made = sim.simulate(scenario, source=source, folder=Path(temporary))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    env = simpy.Environment()

    def ticking() -> Iterator[Any]:
        for _ in range(100_000):
            yield env.timeout(1)

    env.process(ticking())
    began = time.perf_counter()
    env.run()
    bare_s = time.perf_counter() - began
    return {
        "name": row,
        "title": TITLES[row],
        "requests": requests,
        "requests_per_s": requests / wall_s,
        "requests_per_cpu_s": requests / cpu_s,
        "wall_s": wall_s,
        "output_tokens_per_s": made.summary["total_output_tokens"] / wall_s,
        "steps_per_s": made.facts["steps"] / wall_s,
        "decisions_per_s": made.facts["decisions"] / wall_s,
        "decisions_per_request": made.facts["decisions"] / requests,
        "preemptions": made.summary["preemptions"],
        "finished": made.summary["finished"],
        "prefix_cache_hit_rate": made.summary["prefix_cache_hit_rate"],
        "peak_mib": peak / 1024,
        "simpy_timeouts_per_s": 100_000 / bare_s,
    }


def start_up_s() -> float:
    """Seconds of `python -m sim run` for one request, the best of three."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "sim", "run", str(STANDARD), "--set", "workload.num_requests=1"]
        times = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([*command, "--out", f"{temporary}/out"], check=True, cwd=ROOT, capture_output=True)
            times.append(time.perf_counter() - began)
    return min(times)


def apart(row: str, requests: int) -> dict[str, Any]:
    """One row, in a process of its own."""
    command = [sys.executable, __file__, "--here", "--only", row, "--requests", str(requests)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def print_shares(names: list[str], requests: int | None, rounds: int) -> None:
    """Requests per CPU second of policies as shares of vllm's just before: median, least and most of the rounds."""
    shares: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            vllm, own = (apart(row, requests or ROWS[row][0])["requests_per_cpu_s"] for row in ("vllm", name))
            shares[name].append(own / vllm)
    for name, found in shares.items():
        print(f"{name:14} {statistics.median(found):>6.0%}  ({min(found):.0%} to {max(found):.0%})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(ROWS), help="one row")
    parser.add_argument("--requests", type=int, metavar="N", help="this many requests, instead of the row's own")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--shares", type=int, metavar="N", help="policies as shares of vllm, in CPU time, N rounds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    given = parser.parse_args()
    if given.requests is not None and given.requests < 1:
        parser.error("--requests must be at least 1")
    if given.shares is not None:
        if given.shares < 1 or given.only not in (None, *POLICIES):
            parser.error("--shares takes at least 1 round, and of --only a policy")
        others = [name for name in POLICIES if name != "vllm"]
        print_shares([given.only] if given.only else others, given.requests, given.shares)
        return 0
    if given.here:
        print(json.dumps(measure(given.only, given.requests)))
        return 0
    first_s = start_up_s()
    rows = []
    for name in [given.only] if given.only else sorted(ROWS):
        for requests in [given.requests] if given.requests else ROWS[name]:
            rows.append({**apart(name, requests), "start_up_s": first_s})
            if not given.json:
                if len(rows) == 1:
                    print(f"{'':55}" + "".join(f"{title:>19}" for _, title in COLUMNS))
                row = rows[-1]
                figures = "".join(
                    f"{row[key]:>19,.0f}" if row[key] >= 100 else f"{row[key]:>19.2f}" for key, _ in COLUMNS
                )
                print(f"{name:14}  {row['title'][:28]:28} {requests:>10,}" + figures, flush=True)
    if given.json:
        print(json.dumps({"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
