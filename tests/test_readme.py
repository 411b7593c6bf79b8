"""README and docs say what is so: commands and code run, scenarios load, tables are current, links lead somewhere."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sim
from sim.cost import load_calibration
from tests import doc_tables

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh", "console")
SETUP = "python3 -m venv .venv && "
MOST_REQUESTS = 100
SLOW = ("tests/benchmark.py", "tests/verdicts.py", "tests/doc_images.py")  # minutes: only their options
BASE: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "gpu": "h100_sxm",
    "workload": {"num_requests": 10, "arrivals": "batch", "prompt_tokens": 10, "output_tokens": 10},
}


def name(path: Path) -> str:
    return path.name


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(path.read_text("utf-8")) if language in languages]


def commands(path: Path) -> Iterator[str]:
    """The shell commands of a page, one by one, but for setting up."""
    for block in blocks(path, *SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith(SETUP):
                yield line.strip()


def setups() -> list[list[str]]:
    """The parts of the commands that set up."""
    return [line.split(" && ") for block in blocks(README, *SHELL) for line in block.splitlines() if SETUP in line]


def shortened(command: str) -> str:
    """The same command, for fewer requests where it simulates many."""
    words = shlex.split(command)
    if words[1:3] != ["-m", "sim"] or words[3] not in ("run", "compare"):
        return command
    requests = sim.load(ROOT / words[4]).workload.num_requests
    few = "" if requests is not None and requests <= MOST_REQUESTS else f" --set workload.num_requests={MOST_REQUESTS}"
    return command + few


def run(command: str, folder: Path) -> str:
    """Run a command of a page in a folder that looks like the repository's root; what it prints."""
    assert command.startswith(("python ", ".venv/bin/python ")), command
    program, rest = command.split(" ", 1)
    if rest.startswith(SLOW):
        rest = f"{rest.split()[0]} --help"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    text = shortened(f"{program} {rest}").replace(program, shlex.quote(sys.executable), 1)
    done = subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for part in ("scenarios", "tests"):
        (tmp_path / part).symlink_to(ROOT / part)
    return tmp_path


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_and_code_run(path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands(path):
        run(command, checkout)
    monkeypatch.chdir(checkout)
    for text in blocks(path, "python"):
        exec(compile(text, str(path), "exec"), {"__name__": path.stem})


def test_there_are_two_commands_to_set_up(checkout: Path) -> None:
    """Their first parts need the network; .ci/run holds the second one, word for word, and runs it."""
    main, tests = setups()
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert main[1] == ".venv/bin/pip install -e ."
    assert tests[1] == ".venv/bin/pip install -e '.[test]'" and "test" in optional
    run(main[2], checkout)
    folder = checkout / shlex.split(main[2])[-1]
    assert {"comparison.csv", "report.html", "static", "vllm"} <= {path.name for path in folder.iterdir()}
    assert shlex.split(tests[2])[:3] == [".venv/bin/python", "-m", "pytest"]
    script = ROOT / ".ci" / "run"
    assert any(line.startswith(" && ".join(tests)) for line in script.read_text().splitlines())
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_yaml_is_accepted(path: Path, tmp_path: Path) -> None:
    """A whole scenario as it stands, under each of its policies; a part of one within a small one; a calibration."""
    for text in blocks(path, "yaml"):
        data = yaml.safe_load(text)
        if data is None:  # comments alone
            continue
        if "schema" in data:
            (tmp_path / "calibration.yaml").write_text(text)
            assert load_calibration(tmp_path / "calibration.yaml").gpu in {"h100_sxm"}
            continue
        whole = "workload" in data and "model" in data
        written = text if whole else yaml.safe_dump(_within(BASE, data))
        scenario = sim.load_text(written, str(ROOT / "scenarios" / "page.yaml"))
        for label in scenario.policies:
            scenario.with_policy(label)


def _within(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """`part` in place of what `base` says of the same; a workload is replaced, for its lengths exclude each other."""
    merged = {**base, **part}
    workload = part.get("workload")
    if workload is not None:
        lengths = () if workload["arrivals"].get("name") == "trace" or "lengths" in workload else ("prompt_tokens",)
        needed = {key: base["workload"][key] for key in lengths}
        merged["workload"] = {**needed, **workload}
    return merged


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_json_is_json(path: Path) -> None:
    for text in blocks(path, "json"):
        json.loads(text)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_tables_are_current(path: Path) -> None:
    text = path.read_text("utf-8")
    assert doc_tables.replace_all(text) == text, "python tests/doc_tables.py writes them anew"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    text = BLOCK.sub("", path.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, target
    for mentioned in re.findall(r"`((?:sim|analysis|calibrate|tests|scenarios|docs)/[^`\s*]+)`", text):
        assert (ROOT / mentioned).exists(), mentioned


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (path.parent / target.split("#")[0]).resolve()
        for path in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
        if not target.startswith(("http", "#"))
    }
    assert set(PAGES) - linked <= {README}


def test_every_metric_is_explained() -> None:
    overrides = ["workload.num_requests=30"]
    summary = sim.simulate(sim.load(ROOT / "scenarios" / "chatbot.yaml", overrides, "vllm")).summary
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8")))
    latency = re.compile(r"(mean|median|std|p90|p95|p99)_(\w+)_ms")
    for field in [*summary, *next(iter(summary["classes"].values()))]:
        found = latency.fullmatch(field)
        assert field in told or (found and found[2] in told), field


def test_the_recordings_are_as_many_as_is_said() -> None:
    files = list((ROOT / "tests" / "data" / "vllm_schedules").glob("*.golden.jsonl.gz"))
    steps = 0
    for file in files:
        with gzip.open(file) as lines:
            steps += sum(1 for _ in lines) - 1  # the last line sums up
    for path in (README, ROOT / "docs" / "policies.md"):
        text = " ".join(path.read_text("utf-8").split())
        for number in (f"{len(files)} ", f"{steps:,} steps"):
            assert number in text, (path.name, number)
