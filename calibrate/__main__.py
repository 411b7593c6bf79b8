"""python -m calibrate COMMAND: measure, fit, check and show calibrations of the cost model."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from sim.cost import find_calibration
from sim.errors import Complaint, ScenarioError
from sim.gpus import parse

from .check import add_parser as add_check
from .fit import add_parser as add_fit
from .importing import add_parser as add_import
from .measure import add_parser as add_measure
from .show import table
from .tables import add_parser as add_tables
from .validate import add_parser as add_validate


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit code 2, as for any other error."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 if the command or a file is not as it must be."""
    parser = _Parser(prog="python -m calibrate", description="Look at calibrations of the cost model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="print a calibration as a table")
    show.add_argument("calibration", help="`ideal`, the name of a packaged calibration, or a file")
    show.add_argument("--gpu", help="also print what the fractions come to on this GPU, such as h100_sxm")
    add_check(commands)
    add_fit(commands)
    add_import(commands)
    add_measure(commands)
    add_tables(commands)
    add_validate(commands)
    options = parser.parse_args(arguments)
    try:
        if "run" in options:
            return int(options.run(options))
        gpu = parse(options.gpu) if options.gpu else None
        print(table(find_calibration(options.calibration, gpu.name if gpu else None), gpu))
    except Complaint as complaint:
        print(f"--gpu: {complaint.what}", file=sys.stderr)
        return 2
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
