"""Imports point one way, modules fit in one's head, and the facade is what it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sim

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for folder in ("sim", "analysis", "calibrate") for path in (ROOT / folder).rglob("*.py"))
HEAVY = {"pandas", "matplotlib", "scipy", "jinja2"}
WITH_CLOCK = {"environment.py"}  # the only module of sim that knows SimPy: all others are told the time


def imports(path: Path) -> set[str]:
    """Absolute names of all that a module imports, wherever in it."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    folder, found = path.relative_to(ROOT).parts[0], tops(path)
    if folder == "sim":
        assert "calibrate" not in found
        assert "analysis" not in found or path == ROOT / "sim" / "cli.py"
        assert not found & HEAVY
        assert "simpy" not in found or path.name in WITH_CLOCK
    else:
        assert not found & ({"analysis", "calibrate"} - {folder})
        assert "simpy" not in found
    assert "random" not in found  # draws come from named streams


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_fit_in_ones_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)) or not text.strip()


def test_the_facade_is_what_it_says() -> None:
    tree = ast.parse((ROOT / "sim" / "__init__.py").read_text(encoding="utf-8"))
    given = [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert sorted(given) == sorted(sim.__all__)
    assert len(set(sim.__all__)) == len(sim.__all__)


def test_a_run_needs_neither_pandas_nor_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from sim.cli import main\n"
        f"assert main(['run', {str(ROOT / 'scenarios' / 'standard_work.yaml')!r}, '--out', {str(tmp_path / 'out')!r},"
        " '--set', 'workload.num_requests=50']) == 0\n"
        "assert not {'pandas', 'matplotlib', 'scipy', 'analysis', 'joblib'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
