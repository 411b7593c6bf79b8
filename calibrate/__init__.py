"""Calibrations of the cost model: what they say, in a form to read.

`sim` reads calibration files; this folder is for those who look at them. Run as `python -m calibrate`.
"""
