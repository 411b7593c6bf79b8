"""python -m calibrate show ideal|FILE [--gpu NAME]"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from sim.cost import find_calibration
from sim.errors import Complaint, ScenarioError
from sim.gpus import parse

from .show import table


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit code 2, as for any other error."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 if the command or a file is not as it must be."""
    parser = _Parser(prog="python -m calibrate", description="Look at calibrations of the cost model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="print a calibration as a table")
    show.add_argument("calibration", help="`ideal`, or a calibration file")
    show.add_argument("--gpu", help="also print what the fractions come to on this GPU, such as h100_sxm")
    options = parser.parse_args(arguments)
    try:
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
