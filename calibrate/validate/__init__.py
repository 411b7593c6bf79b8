"""Measured serving runs against their simulation: nothing is fitted to them, they are only predicted.

rows (the measured table) -> campaigns and names (what it leaves unsaid, what it calls things) -> build (scenarios) ->
predict (simulations) -> score and reasons -> report and plot. `add_parser` enters the command `validate`.
"""

from .command import add_parser

__all__ = ["add_parser"]
