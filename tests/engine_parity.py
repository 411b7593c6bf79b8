"""Replay recorded schedules of real engines in the simulator and write what it did, in the recordings' own formats.

usage: python tests/engine_parity.py [--no-fast-forward] ENGINE CASE.json[.gz] OUT.jsonl
       python tests/engine_parity.py [--no-fast-forward] ENGINE CASES_DIR OUT_DIR

Of a folder, every NAME.case.json[.gz] becomes NAME.jsonl. ENGINE is vllm, trtllm, tgi or sglang. A replay is case ->
scenario (cost `linear`) and a source that holds the case's requests -> `sim.simulate` -> lines. The formats are
described in the README of each tests/data/ENGINE_schedules/.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ENGINES = ("vllm", "trtllm", "tgi", "sglang")


def replay(engine: str, case: dict[str, Any], fast_forward: bool = True) -> list[dict[str, Any]]:
    """The golden lines of a case, as the simulator has them."""
    lines: list[dict[str, Any]] = import_module(f"tests.parity.{engine}").replay(case, fast_forward)
    return lines


def read(path: Path) -> Any:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("engine", choices=ENGINES, help="whose schedules")
    parser.add_argument("case", type=Path, help="a case, or a folder of them")
    parser.add_argument("out", type=Path, help="the file, or folder, to write")
    parser.add_argument("--no-fast-forward", action="store_true", help="simulate every step by itself")
    options = parser.parse_args(arguments)
    if options.case.is_dir():
        options.out.mkdir(parents=True, exist_ok=True)
        cases = sorted(p for p in options.case.iterdir() if ".case.json" in p.name)
        pairs = [(p, options.out / (p.name.split(".case.json")[0] + ".jsonl")) for p in cases]
    else:
        pairs = [(options.case, options.out)]
    for source, target in pairs:
        lines = replay(options.engine, read(source), not options.no_fast_forward)
        target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
