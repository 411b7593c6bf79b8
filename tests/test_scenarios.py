"""Every shipped scenario, shortened, from the command line to the files, against a golden summary.

`python tests/test_scenarios.py` writes the goldens anew; a change of one is to be explained in its commit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sim.cli import main  # noqa: E402

SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden"
REQUESTS = {"replicas": 4000, "tight_kv": 600}  # beyond the warm-up; until the KV cache is full
USUALLY = 200
COUNTS = ("requests", "finished", "rejected", "failed", "unfinished", "preemptions", "steps", "total_output_tokens")
NUMBERS = (
    "duration", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "p99_itl_ms", "mean_e2el_ms",
    "output_throughput", "mean_kv_usage", "mean_batch_size", "busy_fraction", "prefix_cache_hit_rate",
)  # fmt: skip


def summary_of(scenario: Path, folder: Path) -> dict[str, float | int | None]:
    """Some numbers of its first policy's run."""
    requests = REQUESTS.get(scenario.stem, USUALLY)
    assert main(["run", str(scenario), "--set", f"workload.num_requests={requests}", "--out", str(folder)]) == 0
    place = folder if (folder / "summary.json").exists() else folder / "rep-0"
    summary = json.loads((place / "summary.json").read_text())
    return {name: summary[name] for name in (*COUNTS, *NUMBERS)}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario_matches_its_golden(scenario: Path, tmp_path: Path) -> None:
    golden = GOLDEN / f"{scenario.stem}.json"
    assert golden.exists(), "no golden summary; `python tests/test_scenarios.py` writes it"
    expected, found = json.loads(golden.read_text()), summary_of(scenario, tmp_path / "out")
    for name in COUNTS:
        assert found[name] == expected[name], name
    for name in NUMBERS:
        if expected[name] is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenario_opens_with_its_question(scenario: Path) -> None:
    comment = []
    for line in scenario.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    text = " ".join(comment)
    assert "?" in text
    assert "Expect" in text


def test_no_golden_without_a_scenario() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {path.stem for path in SCENARIOS}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path in SCENARIOS:
        with tempfile.TemporaryDirectory() as temporary:
            content = summary_of(path, Path(temporary) / "out")
        (GOLDEN / f"{path.stem}.json").write_text(json.dumps(content, indent=2) + "\n")
