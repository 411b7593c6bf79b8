"""What is wrong with what the user wrote, said in one line.

Two kinds. A `Complaint` knows the dotted path inside a scenario but not the file; it is raised by whatever checks a
value. A `ScenarioError` is the finished message for the user, `place: path: what`; the scenario loader makes the one
of the other.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

Path = tuple[str | int, ...]


class ScenarioError(Exception):
    """`str(error)` is the whole message, plain text without line breaks."""


class Complaint(ValueError):
    """What is wrong with the value at `path`, relative to whatever was checked."""

    def __init__(self, what: str, *path: str | int) -> None:
        super().__init__(what)
        self.what = what
        self.path: Path = path

    def under(self, *prefix: str | int) -> "Complaint":
        """The same complaint, seen from further up."""
        return type(self)(self.what, *prefix, *self.path)


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def listed(words: Sequence[str]) -> str:
    """`a, b and c`"""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def show(value: Any, most: int = 60) -> str:
    """A value as it may stand in a message: its kind, one line, never long."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    if isinstance(value, float) and value != value:
        return ".nan"
    if isinstance(value, int):
        text = str(value) if -(10**30) < value < 10**30 else "a whole number of over 30 digits"
    elif isinstance(value, str):
        text = repr(value)
    else:
        text = str(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest one, then all."""
    words = list(known)
    lower = {w.lower(): w for w in reversed(words)}
    near = get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    if not near and len(word) > 2:  # a word cut short, as rate for rate_per_s
        near = [known for known in lower if word.lower() in known]
    hint = f"did you mean {lower[near[0]]}? " if near else ""
    return f"{hint}accepted: {', '.join(words) or 'none'}"
