"""The command line. Errors of a user's making are one plain message on stderr and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import checklist, consistency, results
from .errors import ScenarioError
from .frontend import Progress
from .run import Result
from .scenario import Scenario, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where scenario or arguments are wrong, 130 where the user has interrupted."""
    given = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = given.command
        return command(given)
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads what we print has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sim", description="Simulates clusters that serve language models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(command=command)
        return made

    run = add("run", _run, "simulate a scenario and write its results")
    compare = add("compare", _compare, "simulate a scenario under several policies, and report")
    check = add("check", _check, "check a scenario and print its KV cache sizes")
    listing = add("list", _list, "everything that a scenario may name, with parameters and defaults")
    for made in (run, compare, check):
        made.add_argument("scenario", type=Path, metavar="SCENARIO.yaml")
        made.add_argument(
            "--set", action="append", default=[], dest="overrides", metavar="KEY.PATH=VALUE",
            help="change a value of the scenario; may be repeated",
        )  # fmt: skip
    for made in (run, compare):
        made.add_argument("--out", type=Path, metavar="DIR", help="where results go; default: results/NAME")
    for made in (run, check):
        made.add_argument("--policy", metavar="LABEL", help="a label of the scenario's policies, or a policy's name")
    compare.add_argument("--policies", metavar="A,B", help="labels or names; default: all labels of the scenario")
    compare.add_argument("--rates", metavar="R,R", help="mean arrival rates to run each policy at, requests/s")
    for made in (check, listing):
        made.add_argument("--json", action="store_true", help="for programs")
    return parser


def _run(given: argparse.Namespace) -> int:
    scenario = load(given.scenario, given.overrides, given.policy)
    folder = given.out or Path("results") / scenario.name
    _print_sizes(scenario)
    with results.replacing(folder) as place, _Line() as line:
        made = results.run(scenario, place, line.progress)
    for warning in dict.fromkeys(text for result in made for text in result.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    for result in made:
        print(_sentence(result))
    if note := made[0].summary["note"]:
        print(f"cost: {note}")
    print(f"results: {folder}")
    return 0


def _compare(given: argparse.Namespace) -> int:
    scenario = load(given.scenario, given.overrides)
    words = _words(given.policies, "--policies") or list(scenario.policies)
    if not words:
        raise ScenarioError(
            f"{given.scenario}: policies: missing; label the policies to compare there, or name some: --policies static,vllm"
        )
    rates = [_rate(word) for word in _words(given.rates, "--rates")] or [None]
    variants = [
        (f"{word}-{rate:g}" if rate is not None else word, scenario.with_policy(word))
        if rate is None
        else (f"{word}-{rate:g}", scenario.with_policy(word).with_rate(rate))
        for rate in rates
        for word in words
    ]
    folder = given.out or Path("results") / f"{scenario.name}-comparison"
    warnings: dict[str, None] = {}
    with results.replacing(folder) as place:
        with _Line() as line:
            for label, variant in variants:
                (place / label).mkdir()
                for result in results.run(variant, place / label, line.progress):
                    warnings.update(dict.fromkeys(f"{label}: {text}" for text in result.warnings))
        from analysis.compare import comparison, table, write_report  # late, and only here: `sim` runs without it

        places = [place / label for label, _ in variants]
        comparison(places).to_csv(place / "comparison.csv", index=False, lineterminator="\n")
        write_report(places, place / "report.html")
        shown = table(places)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    from rich.console import Console

    Console(soft_wrap=not sys.stdout.isatty()).print(shown)
    print(f"results: {folder}\nreport:  {folder / 'report.html'}")
    return 0


def _check(given: argparse.Namespace) -> int:
    print(checklist.check(load(given.scenario, given.overrides, given.policy), given.json))
    return 0


def _list(given: argparse.Namespace) -> int:
    print(checklist.listing(given.json))
    return 0


def _words(text: str | None, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")] if text is not None else []
    if not all(words) or (text is not None and not words):
        raise ScenarioError(f"{option} {text}: an empty name; write them as A,B")
    if len(set(words)) < len(words):
        raise ScenarioError(f"{option} {text}: a name stands there twice")
    return words


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1e9:
        raise ScenarioError(f"--rates: {word!r} must be a number of requests per second over 0")
    return rate


def _print_sizes(scenario: Scenario) -> None:
    """As vLLM prints them at its start."""
    for label, checked in consistency.check(scenario).items():
        sizes = checked.sizes
        where = f"pool {label}: " if len(scenario.cluster.pools) > 1 else ""
        print(f"{where}GPU KV cache size: {sizes.kv_tokens:,} tokens")
        print(
            f"{where}Maximum concurrency for {sizes.max_model_len:,} tokens per request: {sizes.max_concurrency:.2f}x"
        )


def _sentence(result: Result) -> str:
    """What became of the requests, and how fast that was simulated."""
    summary, facts = result.summary, result.facts
    ended = [f"{summary[status]:,} {status}" for status in ("finished", "rejected", "failed", "unfinished")]
    counts = ", ".join(text for text in ended if not text.startswith("0 "))
    means = [
        f"mean {name} {summary[f'mean_{key}_ms']:,.1f} ms"
        for name, key in (("TTFT", "ttft"), ("TPOT", "tpot"))
        if summary[f"mean_{key}_ms"] is not None
    ]
    speed = summary["requests"] / facts["wall_s"]
    return "; ".join(
        [
            f"{summary['requests']:,} requests: {counts}" if counts else "no requests",
            *means,
            f"{summary['duration']:,.1f} s simulated in {facts['wall_s']:.1f} s ({speed:,.0f} requests/s)",
        ]
    )


class _Line:
    """A line on the terminal while simulations run; nothing where stderr is none."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bar: Any = None

    def __enter__(self) -> _Line:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = self._stack.enter_context(
                Progress(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=20),
                    TextColumn("{task.fields[done]:,} requests, {task.fields[simulated]:,.0f} s simulated,"),
                    TextColumn("{task.fields[speed]:,.0f} requests/s, left"),
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                )
            )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def progress(self, scenario: Scenario, replication: int) -> Progress | None:
        """The callback of one simulation."""
        if self._bar is None:
            return None
        bar = self._bar
        name = scenario.policy_label + (f" {replication + 1}/{scenario.replications}" if replication else "")
        task = bar.add_task(name, total=None, done=0, simulated=0.0, speed=0.0)
        duration_s = scenario.workload.duration_s

        def show(simulated_s: float, done: int, total: int | None) -> None:
            elapsed = bar.tasks[task].elapsed or 1e-9
            completed, whole = (simulated_s, duration_s) if duration_s is not None else (done, total)
            bar.update(task, completed=completed, total=whole, done=done, simulated=simulated_s, speed=done / elapsed)

        return show
