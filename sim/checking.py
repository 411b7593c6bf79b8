"""Strict models, and their complaints in words a user understands.

pydantic does the checking; what it says is replaced by one sentence that names the accepted values, taken from the
field itself, so that message, check and listing cannot disagree.
"""

import types
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from .errors import Complaint, Path, show, suggest

Kind = tuple[Any, list[Any]]  # an annotation and the constraints beside it
KIND = "x-kind"  # stands in the JSON Schema for what `schema` knows of a kind


class Section(BaseModel):
    """A mapping in a scenario: nothing converted, nothing unknown, nothing infinite, frozen once checked."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def refusal(complaint: Complaint) -> PydanticCustomError:
    """A complaint that travels through pydantic, from a validator to `explain`."""
    return PydanticCustomError("complaint", "{what}", {"what": complaint.what, "path": complaint.path})


class Parsed:
    """What a field takes beside a mapping of its own: names, numbers, paths. `kind` is its name in the JSON Schema,
    `words` says what is accepted, where its type does not."""

    def __init__(self, kind: str, parse: Callable[[Any, FilePath | None], Any], words: str = "") -> None:
        self.kind, self.parse, self.words = kind, parse, words

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_before_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {KIND: self.kind}

    def _checked(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        try:
            return self.parse(value, (info.context or {}).get("folder"))
        except Complaint as complaint:
            raise refusal(complaint) from None


def explain(error: ValidationError, model: type[BaseModel], data: Any, whose: str = "") -> Complaint:
    """The complaint that helps most: a key that does not exist, else the first wrong value, else a missing one."""
    found = [(_path(e, data), e) for e in error.errors(include_url=False)]
    found.sort(key=lambda pair: (pair[1]["type"] == "missing", pair[1]["type"] != "extra_forbidden"))
    path, chosen = found[0]
    if chosen["type"] != "extra_forbidden":  # of the branches of a union, the one that came furthest
        path, chosen = max((p for p in found if p[0][:1] == path[:1]), key=lambda pair: len(pair[0]))
    return Complaint(_words(chosen, path, model, whose), *path)


def accepted(kind: Kind) -> str:
    """The values of a field, in words: `a whole number from 1 to 10`."""
    annotation, limits = kind
    origin = get_origin(annotation)
    if said := next((m.words for m in limits if isinstance(m, Parsed)), ""):
        return said
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return accepted((inner, limits + _flat(more)))
    if origin in (Union, types.UnionType):
        words = [accepted((a, limits)) for a in get_args(annotation) if a is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        values = [show(v) if isinstance(v, bool) else str(v) for v in get_args(annotation)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if annotation is bool:
        return "true or false"
    if annotation is int or annotation is float:
        return ("a whole number" if annotation is int else "a number") + _range(limits)
    if annotation is str:
        most = next((m.max_length for m in limits if getattr(m, "max_length", None) is not None), None)
        return f"text of 1 to {most} characters" if most else "text"
    if origin is list:
        least, most = (
            next((getattr(m, name) for m in limits if getattr(m, name, None) is not None), None)
            for name in ("min_length", "max_length")
        )
        size = f" of {least}" if least == most and least else f" of {least} or more" if least else ""
        return f"a list{size}, each {accepted((get_args(annotation)[0], []))}"
    if keys := keys_of(annotation):
        return f"a mapping with the keys {', '.join(keys)}"
    return "a mapping" if origin is dict else str(getattr(annotation, "__name__", annotation)).lower()


def keys_of(annotation: Any) -> list[str]:
    """Keys of the mapping that an annotation stands for; empty if it is no mapping with fixed keys."""
    return next((list(a.model_fields) for a in _branches(annotation) if _is_model(a)), [])


def field_at(model: Any, path: Path) -> Kind:
    """Annotation and constraints of the value at `path`; (Any, []) where there is none."""
    kind: Kind = (model, [])
    for part in path:
        for branch in _branches(kind[0]):
            if _is_model(branch) and part in branch.model_fields:
                kind = kind_of(branch.model_fields[str(part)])
                break
            if get_origin(branch) in (dict, list):
                kind = (get_args(branch)[-1], [])
                break
        else:
            return Any, []
    return kind


def kind_of(field: FieldInfo) -> Kind:
    return field.annotation, list(field.metadata)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _branches(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _branches(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [b for a in get_args(annotation) for b in _branches(a)]
    return [annotation]


def _flat(metadata: list[Any]) -> list[Any]:
    return [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _range(limits: list[Any]) -> str:
    least = next((f"{'from' if name == 'ge' else 'over'} {_number(v)}" for name, v in _limits(limits, "ge", "gt")), "")
    most = next((f"{'to' if name == 'le' else 'under'} {_number(v)}" for name, v in _limits(limits, "le", "lt")), "")
    if least.startswith("from") and not most:
        return f" >= {least[5:]}"
    if most.startswith("to") and not least.startswith("from"):
        most = f"at most {most[3:]}"
    return "".join(
        f" {word}" for word in (least, "and" if least and most and not most.startswith("to") else "", most) if word
    )


def _limits(limits: list[Any], *names: str) -> list[tuple[str, Any]]:
    return [(name, getattr(m, name)) for m in limits for name in names if getattr(m, name, None) is not None]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) or value != int(value) else str(int(value))


def _path(error: ErrorDetails, data: Any) -> Path:
    """Where in the data an error is: pydantic's location without the names of a union's branches."""
    path: list[str | int] = []
    location = error["loc"]
    for i, part in enumerate(location):
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            path.append(part)
            data = data[part]  # type: ignore[index]
        elif error["type"] == "missing" and i == len(location) - 1:
            path.append(part)
    return (*path, *error.get("ctx", {}).get("path", ()))


def _words(error: ErrorDetails, path: Path, model: type[BaseModel], whose: str) -> str:
    if error["type"] == "complaint":
        return str(error["ctx"]["what"])
    if error["type"] == "extra_forbidden":
        known = keys_of(field_at(model, path[:-1])[0])
        return f"unknown key{f' of {whose}' if whose and len(path) == 1 else ''}; {suggest(str(path[-1]), known)}"
    wanted = accepted(field_at(model, path))
    if error["type"] == "missing":
        return f"missing; it must be {wanted}"
    value = error["input"]
    return f"must be {wanted}, got {show(value)}{_hint(value, wanted)}"


def _hint(value: Any, wanted: str) -> str:
    """The traps: text that looks like a number, and a near miss of a word."""
    if not isinstance(value, str):
        return ""
    if "number" in wanted:
        return number_hint(value, whole="whole" in wanted)
    if wanted.startswith("one of "):
        words = suggest(value, wanted.removeprefix("one of ").split(", "))
        return f"; {words.split('? ')[0]}?" if words.startswith("did") else ""
    return ""


def number_hint(text: str, whole: bool) -> str:
    """The end of a message about text that is meant to be a number: 1e3 in YAML 1.1, and whatever is in quotes."""
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        return ""
    if whole:
        return f"; YAML reads it as text, write {int(number)}" if number.is_integer() and abs(number) < 1e18 else ""
    plain = f"{number!r} or " if 1e-4 <= abs(number) < 1e16 else ""
    mantissa, exponent = f"{number:.6e}".split("e")
    digits = mantissa.rstrip("0")
    return (
        f"; YAML reads it as text, write {plain}{digits + '0' * digits.endswith('.')}e{exponent[0]}{int(exponent[1:])}"
    )
