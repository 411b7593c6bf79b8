"""Replays of recorded schedules: a module an engine, each with `replay(case, fast_forward) -> lines`."""
