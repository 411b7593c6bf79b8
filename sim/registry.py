"""Names to classes: every policy, order of the queue, router, arrival process, length distribution and cost model.

A component is one dataclass; its init fields are its YAML parameters, annotated with pydantic's `Field` (limits, and
a line of help that gives the unit). Registering it is all it takes to be accepted, checked, listed and run.

    @register("policy", "static")
    @dataclass
    class Static:
        '''First line: the line of help.'''
        batch_size: Annotated[int, Field(ge=1, le=65536, description="sequences of a batch")] = 32

What a class may define besides its own kind's methods (all optional):
    defaults_for(gpu) -> dict            static; values for parameters left at None, which depend on the GPU
    verify(resolve) -> None              complains about files it names; `resolve` makes a written path a real one
    scale_to(rate, workload, resolve)    arrivals without rate_per_s; the rate_scale that gives this mean rate
    check(engine, max_model_len) -> str  policies; what the engine would refuse, or None
    named_otherwise: ClassVar            policies; engine's own names of parameters that stand elsewhere in a scenario
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ValidationError, create_model
from pydantic import Field as ModelField

from .checking import Section, accepted, explain, kind_of, number_hint
from .errors import Complaint, listed, show, suggest

PACKAGES = {
    "policy": ".policies",
    "order": ".orders",
    "router": ".routers",
    "arrivals": ".workload",
    "lengths": ".workload",
    "length_pairs": ".workload",
    "cost": ".cost",
}
WORDS = {
    "policy": "policy",
    "order": "order of the queue",
    "router": "router",
    "arrivals": "arrival process",
    "lengths": "length distribution",
    "length_pairs": "joint length distribution",
    "cost": "cost model",
}

_classes: dict[str, dict[str, type]] = {kind: {} for kind in PACKAGES}
T = TypeVar("T")


@dataclass(frozen=True)
class Component:
    """A name and its parameters, all of them, checked: plain data, of which each run builds fresh objects."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As it stands in a scenario's long form; what is absent is left out."""
        return {"name": self.name, **{k: v for k, v in self.params.items() if v is not None}}

    def having(self, **params: Any) -> "Component":
        """A copy with some parameters changed, not checked again."""
        return Component(self.name, {**self.params, **params})


def register(kind: str, name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: makes a dataclass known as `name` of this kind."""

    def enter(cls: type[T]) -> type[T]:
        if not is_dataclass(cls):
            raise TypeError(f"{cls.__name__} must be a dataclass, its init fields are its parameters")
        known = _classes[kind].get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"two classes are registered as {WORDS[kind]} {name}")
        _classes[kind][name] = cls
        return cls

    return enter


def names(kind: str) -> list[str]:
    """All registered names of a kind, in alphabetical order."""
    _load(kind)
    return sorted(_classes[kind])


def get(kind: str, name: str) -> type:
    """The class of that name; a Complaint with the nearest name otherwise."""
    _load(kind)
    cls = _classes[kind].get(name)
    if cls is None:
        raise Complaint(f"unknown {WORDS[kind]} {name!r}; {suggest(name, names(kind))}")
    return cls


def parse(kind: str, value: Any) -> Component:
    """A bare name or a mapping with `name`, as the user wrote it -> the component with all its parameters, checked."""
    if isinstance(value, Component):
        value = value.plain()
    if not isinstance(value, dict):
        return _short(kind, value)
    name = value.get("name")
    if not isinstance(name, str):
        what = "missing" if "name" not in value else f"must be text, got {show(name)}"
        raise Complaint(f"{what}; accepted: {', '.join(names(kind))}", "name")
    try:
        cls = get(kind, name)
    except Complaint as complaint:
        raise complaint.under("name") from None
    checked = _checked(kind, name, cls, {k: v for k, v in value.items() if k != "name"})
    component = Component(name, checked.model_dump())
    build(kind, component)  # what only the whole can tell, such as a mean outside its limits
    return component


def _short(kind: str, value: Any) -> Component:
    """A component in one word: a name, or of lengths the commonest one, a plain number of tokens."""
    number = kind == "lengths" and isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, str) and not number:
        also = "a whole number of tokens, " if kind == "lengths" else ""
        raise Complaint(
            f"must be {also}a name or a mapping with name, got {show(value)}; accepted names: {', '.join(names(kind))}"
        )
    if not number and kind == "lengths" and value not in names(kind) and (hint := number_hint(value, whole=True)):
        raise Complaint(f"must be a whole number of tokens or a length distribution, got {show(value)}{hint}")
    try:
        return parse(kind, {"name": "fixed", "tokens": value} if number else {"name": value})
    except Complaint as complaint:  # about something that the user did not write as a key
        raise Complaint(
            complaint.what, *(complaint.path if complaint.path not in (("name",), ("tokens",)) else ())
        ) from None


def build(kind: str, component: Component) -> Any:
    """A fresh instance, its parameters checked; state never leaks from one run to the next."""
    cls = get(kind, component.name)
    checked = _checked(kind, component.name, cls, component.params)
    return cls(**{name: getattr(checked, name) for name in type(checked).model_fields})


def parameters(cls: type) -> list[dict[str, Any]]:
    """Name, type, default, required and help of each parameter of a component's class; types in words."""
    return rows(model_of(cls))


def rows(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The same of any mapping of a scenario."""
    found = []
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True, validated_data={}) if not info.is_required() else None
        found.append(
            {
                "name": name,
                "type": accepted(kind_of(info)),
                "default": default.model_dump() if isinstance(default, BaseModel) else default,
                "required": info.is_required() and not _help(info).startswith("default: "),
                "help": _help(info),
            }
        )
    return found


def help_line(cls: type) -> str:
    """The first line of a class's docstring."""
    return (cls.__doc__ or "").strip().split("\n")[0]


def _load(kind: str) -> None:
    """Import the package whose modules register this kind. Late, since those modules import this one."""
    import_module(PACKAGES[kind], __package__)


def _checked(kind: str, name: str, cls: type, params: dict[str, Any]) -> BaseModel:
    model = model_of(cls)
    try:
        return model.model_validate(params)
    except ValidationError as error:
        complaint = explain(error, model, params, f"the {WORDS[kind]} {name}")
        where = _elsewhere(kind, cls, str(complaint.path[0])) if len(complaint.path) == 1 else ""
        raise hinted(complaint, where) from None


def hinted(complaint: Complaint, where: str) -> Complaint:
    """The same of an unknown key, with where it belongs; unchanged without a hint, or about something else."""
    if not where or not complaint.what.startswith("unknown key"):
        return complaint
    head, _, rest = complaint.what.partition("; ")
    return Complaint(f"{head}; {where}; {rest}", *complaint.path)


def _elsewhere(kind: str, cls: type, key: str) -> str:
    """Whose parameter a key is that this class lacks."""
    if key in (named := getattr(cls, "named_otherwise", {})):
        return f"here it is {named[key]}"
    if kind != "policy":
        return ""
    if key in import_module(".scenario", __package__).Engine.model_fields:
        return f"it stands under engine, engine.{key}"
    owners = _owners(key)
    return f"it is a parameter of {listed(owners)}" if owners else _in_other_words(key)


def elsewhere_than_engine(key: str) -> str:
    """Where a key belongs that does not stand under engine: to policies, or in other words."""
    owners = _owners(key)
    return f"it stands under policy, for it is a parameter of {listed(owners)}" if owners else _in_other_words(key)


def _owners(key: str) -> list[str]:
    return [name for name in names("policy") if key in model_of(get("policy", name)).model_fields]


def _in_other_words(key: str) -> str:
    """How a scenario says what is an engine's own name of something."""
    engines = {name: getattr(get("policy", name), "named_otherwise", {}).get(key) for name in names("policy")}
    owners = [name for name, said in engines.items() if said]
    return f"{listed(owners)} has it; in a scenario it is {engines[owners[0]]}" if owners else ""


@cache
def model_of(cls: type) -> type[BaseModel]:
    """The pydantic model of a component's parameters. The class itself stays a plain dataclass, quick to build."""
    parameters = [f for f in fields(cls) if f.init]
    written = {"__module__": cls.__module__, "__annotations__": {f.name: f.type for f in parameters}}
    hints = get_type_hints(
        type(cls.__name__, (), written), include_extras=True
    )  # of these only: state may name what is not imported
    definitions: dict[str, Any] = {f.name: (hints[f.name], _default(f)) for f in parameters}
    model = create_model(cls.__name__, __base__=Section, **definitions)
    for name, info in model.model_fields.items():  # `plain` leaves absent parameters out, so absent must mean None
        if type(None) in get_args(info.annotation) and info.get_default() is not None:
            raise TypeError(f"{cls.__name__}.{name} may be None, so None must be its default")
    return model


def _default(f: "Field[Any]") -> Any:
    if f.default is not MISSING:
        return f.default
    return ... if f.default_factory is MISSING else ModelField(default_factory=f.default_factory)


def _help(info: Any) -> str:
    if info.description:
        return str(info.description)
    nested = (m.description for m in info.metadata if getattr(m, "description", None))
    return str(next(nested, ""))
