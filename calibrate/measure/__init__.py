"""Measuring real steps of a layer stack, and the kernels that they are made of, on the GPU or CPU at hand.

Only `command` is imported before it is known that PyTorch is there; `grid` and `store` never need it.
"""

from .command import add_parser, run

__all__ = ["add_parser", "run"]
