"""YAML with positions: plain data, and for every path in it the place where the user wrote it.

YAML 1.1 has traps that PyYAML keeps; here a repeated key is refused instead of winning silently, and what looks like
a time of day (12:30 is 750), a date or an octal number (010 is 8) stays text, so that the check of its type shows
what was written.
"""

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import yaml

from .errors import Path, ScenarioError, dotted, show

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_NODES = 200_000  # a few bytes of nested aliases can stand for billions of values
MOST_LEVELS = 50
_TAG = "tag:yaml.org,2002:"
_INFINITY = {".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}


class Document:
    """The data of a file and the place of every path in it: `file:line`, or the override that set it."""

    def __init__(self, name: str, data: Any, places: dict[Path, str]) -> None:
        self.name = name
        self.data = data
        self.places = places

    def place(self, path: Path) -> str:
        """Where the innermost key or list item on the way to `path` was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name

    def error(self, path: Path, what: str) -> ScenarioError:
        return ScenarioError(": ".join(part for part in (self.place(path), dotted(path), what) if part))

    def set(self, override: str, defaults: dict[str, str] | None = None) -> None:
        """`key.path=value`, the value in YAML.

        Missing mappings are made, those at the top level with the name that `defaults` gives; a bare name becomes a
        mapping with that `name`.
        """
        key, equals, text = override.partition("=")
        place = f"--set {_one_line(override)}"
        path = tuple(key.strip().split("."))
        if not equals or "" in path:
            raise ScenarioError(
                f"{place}: must be KEY=VALUE with a dotted key, such as workload.arrivals.rate_per_s=12"
            )
        value = parse(text, place, lambda line: place, empty=True).data
        node = self.data
        for depth, part in enumerate(path[:-1]):
            child = node.get(part)
            if child is None or child is False:
                name = (defaults or {}).get(part) if depth == 0 else None
                child = {"name": name} if name else {}
                self.places[path[: depth + 1]] = place
            elif isinstance(child, str):
                child = {"name": child}
            elif not isinstance(child, dict):
                raise ScenarioError(
                    f"{place}: {dotted(path[: depth + 1])}: is {show(child)} here, it has no keys to set"
                )
            node[part] = node = dict(child)  # a copy: the same mapping may stand elsewhere too, by a YAML alias
        node[path[-1]] = value
        for known in [p for p in self.places if p[: len(path)] == path]:
            del self.places[known]
        self.places[path] = place


def read(path: FilePath | str) -> Document:
    """The document in a file. ScenarioError if it cannot be read, is no YAML, or is no mapping."""
    name = str(path)
    try:
        raw = FilePath(path).read_bytes()
    except FileNotFoundError:
        raise ScenarioError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ScenarioError(f"{name}: is a directory; a scenario is a YAML file") from None
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ScenarioError(f"{name}:{line}: is not UTF-8 text (byte {raw[error.start]:#04x})") from None
    return mapping(text, name)


def mapping(text: str, name: str) -> Document:
    """The document in a text, which must be a mapping."""
    document = parse(text, name, lambda line: f"{name}:{line}")
    if not isinstance(document.data, dict):
        raise ScenarioError(f"{document.place(())}: must be a mapping of keys to values, got {show(document.data)}")
    return document


def parse(text: str, name: str, place: Callable[[int], str], empty: bool = False) -> Document:
    """Data and places of a text. `place` says how a line (from 1) is named; `empty` text is null or refused."""
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{place(_line(error, text))}: not valid YAML: {_problem(error)}") from None
    except RecursionError:
        raise ScenarioError(f"{place(1)}: is nested more than {MOST_LEVELS} levels deep") from None
    except UnicodeEncodeError:
        raise ScenarioError(f"{place(1)}: is not UTF-8 text") from None
    if node is None:
        if not empty:
            raise ScenarioError(f"{place(1)}: is empty; a scenario has at least model, gpu and workload")
        return Document(name, None, {(): place(1)})
    builder = _Builder(place)
    return Document(name, builder.build(node, ()), builder.places)


class _Builder:
    def __init__(self, place: Callable[[int], str]) -> None:
        self.place = place
        self.places: dict[Path, str] = {(): place(1)}
        self.nodes = 0

    def build(self, node: Any, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise self.error(node, path, f"holds over {MOST_NODES} values, aliases counted")
        if len(path) > MOST_LEVELS:
            raise self.error(node, path[:3], f"is nested more than {MOST_LEVELS} levels deep")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            for i, item in enumerate(node.value):
                self.places[(*path, i)] = self.place(item.start_mark.line + 1)
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        raise self.error(node, path, f"the tag {_tag(node)} is not supported")

    def mapping(self, node: Any, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, path, "a key must be a plain word")
            here = (*path, key.value)
            if key.value in first:
                what = f"repeated key; it stands in line {first[key.value]} already, and a key may stand once"
                raise ScenarioError(f"{self.place(line)}: {dotted(here)}: {what}")
            first[key.value] = line
            self.places[here] = self.place(line)
            data[key.value] = self.build(value, here)
        return data

    def scalar(self, node: Any, path: Path) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}[text.lower()]
            if kind == "int" and ":" not in text:
                digits = text.replace("_", "").lstrip("+-")
                return (
                    text if len(digits) > 1 and digits[0] == "0" and digits.isdigit() else int(text.replace("_", ""), 0)
                )
            if kind == "float" and ":" not in text:
                return _INFINITY[text.lower()] if text.lower() in _INFINITY else float(text.replace("_", ""))
        except (KeyError, ValueError):
            raise self.error(node, path, f"{show(text)} is not a value of the tag {_tag(node)}, or too long") from None
        if kind in ("str", "int", "float", "timestamp", "value"):
            return text
        raise self.error(
            node, path, f"the tag {_tag(node)} is not supported" if kind != "merge" else "must be text, got '<<'"
        )

    def error(self, node: Any, path: Path, what: str) -> ScenarioError:
        place = self.place(node.start_mark.line + 1)
        return ScenarioError(": ".join(part for part in (place, dotted(path), what) if part))


def _tag(node: Any) -> str:
    return str(node.tag).replace(_TAG, "!!")


def _line(error: yaml.YAMLError, text: str) -> int:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return int(min(mark.line, text.count("\n") + (not text.endswith("\n")) - 1)) + 1
    position = getattr(error, "position", None)  # of a character that YAML does not allow
    return text[:position].count("\n") + 1 if isinstance(position, int) else 1


def _problem(error: yaml.YAMLError) -> str:
    words = [getattr(error, name, None) for name in ("context", "problem")]
    if not any(words):
        words = [getattr(error, "reason", None) or str(error).split("\n")[0]]
    return _one_line(", ".join(str(word) for word in words if word))


def _one_line(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
