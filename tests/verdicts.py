"""How often a run is called stable or above capacity, by load and length: `python tests/verdicts.py` prints the table.

A linear cost makes the capacity exact. `static`: batches of 8 of equal requests. `single`: one at a time, exponential
output lengths, which vary as much as those of real traffic. Loads are shares of the capacity, arrivals Poisson, each
cell some seeds of its own. At 2 % above capacity and 300 requests, chance alone moves the queue of `single` by four
times what the load does, and no test can tell; it is the false alarms that have to stay rare.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim import from_mapping, simulate

LOADS = (0.5, 0.8, 0.9, 0.95, 1.0, 1.02, 1.05, 1.1, 1.2)
COUNTS = (300, 1000, 5000)
STEP_S, TOKENS = 0.01, 20


def capacity_per_s(kind: str) -> float:
    """Requests a second: a request, or a batch of 8, takes 20 steps in the mean (20.02 where lengths are drawn)."""
    return (8 if kind == "static" else 1) / (TOKENS * STEP_S)


def verdict(kind: str, load: float, count: int, seed: int) -> str:
    alone = {"name": "vllm", "max_num_seqs": 1, "async_scheduling": False}
    output: Any = {"name": "exponential", "mean": TOKENS, "max": 1000}
    scenario = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "engine": {"max_model_len": 2048},
        "policy": {"name": "static", "batch_size": 8, "max_queue_delay_s": 0} if kind == "static" else alone,
        "workload": {
            "num_requests": count,
            "arrivals": {"name": "poisson", "rate_per_s": load * capacity_per_s(kind)},
            "prompt_tokens": 16,
            "output_tokens": TOKENS if kind == "static" else output,
            "ignore_eos": True,
        },
        "cost": {"name": "linear", "base_s": STEP_S, "per_token_s": 0.0, "per_context_token_s": 0.0},
        "seed": seed,
    }
    return str(simulate(from_mapping(scenario)).summary["verdict"])


def main() -> None:
    parser = argparse.ArgumentParser(description="share of runs called above capacity, per cent")
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    print("| run | requests |" + "".join(f" {load:g} |" for load in LOADS))
    print("| --- | --- |" + " --- |" * len(LOADS))
    for kind in ("static", "single"):
        for count in COUNTS:
            shares = []
            for load in LOADS:
                found = [verdict(kind, load, count, seed) for seed in seeds]
                shares.append(found.count("above capacity") / len(found))
            print(f"| {kind} | {count:,} |" + "".join(f" {share:.0%} |" for share in shares), flush=True)


if __name__ == "__main__":
    main()
