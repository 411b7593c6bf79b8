"""The command line. Errors of a user's making are one plain message on stderr and exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from . import checklist, consistency, explain, registry, results, schema, summing_up
from .errors import ScenarioError
from .parallel import run_all
from .progressline import ProgressLine
from .scenario import Scenario, load

ALL = "all"
"""Every policy, as a word of --policies."""


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit code 2, as for any other error."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m sim", description="Simulates clusters that serve language models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(command=command)
        return made

    run = add("run", _run, "simulate a scenario and write its results")
    compare = add("compare", _compare, "simulate a scenario under several policies, and report")
    why = add("explain", _explain, "explain the time of a prefill and of a decode step, operator by operator")
    check = add("check", _check, "check a scenario and print its KV cache sizes")
    add("schema", _schema, "the JSON Schema of a scenario, for editors")
    listing = add("list", _list, "everything that a scenario may name, with parameters and defaults")
    for made in (run, compare, check, why):
        made.add_argument("scenario", type=Path, metavar="SCENARIO.yaml")
        made.add_argument(
            "--set", action="append", default=[], dest="overrides", metavar="KEY.PATH=VALUE",
            help="change a value of the scenario; may be repeated",
        )  # fmt: skip
    for made in (run, compare):
        made.add_argument("--out", type=Path, metavar="DIR", help="where results go; default: results/NAME")
        made.add_argument(
            "--replications", metavar="N", help="simulations with seeds of their own; more than one gives intervals"
        )
        made.add_argument("--jobs", metavar="N", help="simulations at a time; default: as many as there are cores")
    for made in (run, check, why):
        made.add_argument("--policy", metavar="LABEL", help="a label of the scenario's policies, or a policy's name")
    compare.add_argument(
        "--policies",
        metavar="A,B",
        help="labels or names; all: every label and every other policy; default: all labels of the scenario",
    )
    compare.add_argument("--rates", metavar="R,R", help="mean arrival rates to run each policy at, requests/s")
    for option, letter, what in (
        ("--batch", "B", f"sequences of a step; default {explain.BATCH}"),
        ("--context", "S", f"tokens that each reads in decode, the new one included; default {explain.CONTEXT}"),
        ("--prompt", "T", f"tokens of each prompt in prefill; default {explain.PROMPT}"),
    ):
        why.add_argument(option, metavar=letter, help=what)
    why.add_argument("--out", type=Path, metavar="DIR|PNG", help="where the chart goes; default: results/NAME-explain")
    for made in (check, why, listing):
        made.add_argument("--json", action="store_true", help="for programs")
    return parser


def _run(given: argparse.Namespace) -> int:
    scenario = load(given.scenario, _overrides(given), given.policy)
    processes = _count(given.jobs, "--jobs")
    folder = given.out or Path("results") / scenario.name
    with results.replacing(folder) as place, ProgressLine() as line:
        _print_sizes(scenario)
        jobs = results.jobs(scenario, place)
        made = run_all(jobs, processes, progress=line.progress, ended=line.counting(len(jobs)))
    _warn(
        dict.fromkeys(text for outcome in made for text in outcome.warnings) | dict.fromkeys(summing_up.like_ones(made))
    )
    for outcome in made:
        print(summing_up.sentence(outcome))
    for text in summing_up.intervals([outcome.summary for outcome in made]):
        print(text)
    for text in dict.fromkeys(summing_up.verdict(outcome.summary) for outcome in made):
        print(text)
    if note := made[0].summary["note"]:
        print(f"cost: {note}")
    print(f"results: {folder}")
    return 0


def _compare(given: argparse.Namespace) -> int:
    scenario = load(given.scenario, _overrides(given))
    processes = _count(given.jobs, "--jobs")
    words = _with_all(scenario, _words(given.policies, "--policies")) or list(scenario.policies)
    if not words:
        raise ScenarioError(
            f"{given.scenario}: policies: missing; label the policies to compare there, or name some:"
            " --policies static,vllm"
        )
    rates: list[float | None] = [_rate(word) for word in _words(given.rates, "--rates")] or [None]
    variants = [
        (word, scenario.with_policy(word))
        if rate is None
        else (f"{word}-{rate:g}", scenario.with_policy(word).with_rate(rate))
        for rate in rates
        for word in words
    ]
    folder = given.out or Path("results") / f"{scenario.name}-comparison"
    with results.replacing(folder) as place:
        labelled = [(label, job) for label, variant in variants for job in results.jobs(variant, place / label)]
        with ProgressLine() as line:
            counting = line.counting(len(labelled))
            made = run_all([job for _, job in labelled], processes, progress=line.progress, ended=counting)
        from analysis import compare  # late, and only here: `sim` runs without it

        places = [place / label for label, _ in variants]
        compare.comparison(places).to_csv(place / "comparison.csv", index=False, lineterminator="\n")
        compare.paired(places).to_csv(place / "paired.csv", index=False, lineterminator="\n")
        compare.write_report(places, place / "report.html")
        shown = [compare.table(places), compare.winners(places)]
        told = compare.told(places)
    by_label: dict[str, list[results.Outcome]] = {}
    for (label, _), outcome in zip(labelled, made, strict=True):
        by_label.setdefault(label, []).append(outcome)
    _warn(
        f"{label}: {text}"
        for label, mine in by_label.items()
        for text in dict.fromkeys([text for one in mine for text in one.warnings] + summing_up.like_ones(mine))
    )
    from rich.console import Console

    console = Console(soft_wrap=not sys.stdout.isatty())
    for part in filter(None, shown):
        console.print(part)
    for text in told:
        print(text)
    print(f"results: {folder}\nreport:  {folder / 'report.html'}")
    return 0


def _explain(given: argparse.Namespace) -> int:
    """The chart is drawn unless only JSON was asked for."""
    scenario = load(given.scenario, given.overrides, given.policy)
    sizes = ("batch", "context", "prompt")
    found = explain.explain(
        scenario, **{name: explain.size(getattr(given, name), name) for name in sizes if getattr(given, name)}
    )
    print(json.dumps(found, indent=2) if given.json else explain.text(found))
    if given.json and given.out is None:
        return 0
    out = given.out or Path("results") / f"{scenario.name}-explain"
    file = out if out.suffix.lower() == ".png" else out / "roofline.png"
    from analysis.plots.roofline import roofline  # late: `sim` runs without it

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(roofline(found))
    except OSError as error:
        raise ScenarioError(f"{error.filename or file}: {error.strerror or error}") from None
    if not given.json:
        print(f"\nroofline: {file}")
    return 0


def _check(given: argparse.Namespace) -> int:
    print(checklist.check(load(given.scenario, given.overrides, given.policy), given.json))
    return 0


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(schema.schema(), indent=2, allow_nan=False))
    return 0


def _list(given: argparse.Namespace) -> int:
    print(checklist.listing(given.json))
    return 0


def _overrides(given: argparse.Namespace) -> list[str]:
    """Those of --set, and --replications as one of them."""
    count = _count(given.replications, "--replications")
    return [*given.overrides, *([f"replications={count}"] if count is not None else [])]


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        print(f"warning: {text}", file=sys.stderr)


def _count(word: str | None, option: str) -> int | None:
    if word is None:
        return None
    if not (word.isascii() and word.isdigit() and 0 < int(word) <= 10_000):
        raise ScenarioError(f"{option}: {word!r} must be a whole number from 1 to 10,000")
    return int(word)


def _words(text: str | None, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")] if text is not None else []
    if not all(words) or (text is not None and not words):
        raise ScenarioError(f"{option} {text}: an empty name; write them as A,B")
    if len(set(words)) < len(words):
        raise ScenarioError(f"{option} {text}: a name stands there twice")
    return words


def _with_all(scenario: Scenario, words: Sequence[str]) -> list[str]:
    """`all` stands for every label of the scenario and, with their defaults, for every policy that no label has; those
    of the latter that cannot run this scenario are left out, with a warning."""
    if ALL not in words or ALL in scenario.policies:
        return list(words)
    every = list(scenario.policies)
    labelled = {policy.name for policy in scenario.policies.values()} | set(every)
    for name in registry.names("policy"):
        if name in labelled:
            continue
        try:
            scenario.with_policy(name)
        except ScenarioError as error:
            _warn([f"{name} is left out: {error}"])
        else:
            every.append(name)
    return list(dict.fromkeys(each for word in words for each in (every if word == ALL else [word])))


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
