"""`python -m analysis report DIR...`: results of `sim run` and `sim compare` -> one HTML file and its pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .load import ResultError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit code 2, as for any other error."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr."""
    parser = _Parser(prog="python -m analysis", description="Reads the results of `python -m sim`.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="a self-contained HTML report, with its plots as PNG files beside it")
    report.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a result folder, or one that holds several (sim compare)"
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE.html", help="default: report.html in DIR, or here if there are several"
    )
    given = parser.parse_args(arguments)
    from .report import write_report  # late: `--help` needs no plots

    out = given.out or (given.folders[0] if len(given.folders) == 1 else Path()) / "report.html"
    try:
        written = write_report(given.folders, out)
    except ResultError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or out}: {error.strerror or error}", file=sys.stderr)
        return 2
    plots = sum(path.suffix == ".png" for path in written)
    print(f"{written[0]} and {plots} plots beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
