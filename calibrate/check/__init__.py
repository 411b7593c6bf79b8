"""Holding a calibration against measurements that its fit did not see, operator by operator and step by step."""

from .command import add_parser, run

__all__ = ["add_parser", "run"]
