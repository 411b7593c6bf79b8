"""The registry: names to classes, parameters checked, listing and messages from one source."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import pytest
from pydantic import Field

from sim import registry
from sim.checking import Section
from sim.errors import Complaint
from sim.registry import Component

if TYPE_CHECKING:
    from sim.scenario import Scenario


class Nested(Section):
    sigma: Annotated[float, Field(ge=0, le=1)] = 0.25


@dataclass
class Dummy:
    """The line of help.

    More about it.
    """

    size: Annotated[int, Field(ge=1, le=10, description="how big, tokens")]
    rate: Annotated[float, Field(gt=0, allow_inf_nan=True, description="per second")] = 2.0
    kind: Literal["some", "other"] = "some"
    limit: Annotated[int | None, Field(ge=1, description="most")] = None
    noise: bool | Nested = False
    window: Annotated[list[float] | None, Field(min_length=2, max_length=2)] = None
    state: "Scenario | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.size == 7:
            raise Complaint("must not be 7", "size")


@pytest.fixture(autouse=True)
def dummy() -> Iterator[None]:
    registry.names("router")
    registry.register("router", "dummy")(Dummy)
    yield
    del registry._classes["router"]["dummy"]


def complaint(value: object, kind: str = "router") -> tuple[str, str]:
    with pytest.raises(Complaint) as caught:
        registry.parse(kind, value)
    return ".".join(map(str, caught.value.path)), caught.value.what


def test_parsing_completes_the_parameters_and_building_gives_fresh_objects() -> None:
    component = registry.parse("router", {"name": "dummy", "size": 3, "noise": {"sigma": 0.5}})
    assert component.params == {
        "size": 3, "rate": 2.0, "kind": "some", "limit": None, "noise": {"sigma": 0.5}, "window": None,
    }  # fmt: skip
    one, two = (registry.build("router", component) for _ in range(2))
    assert one == two and one is not two and one.noise == Nested(sigma=0.5) and one.state is None
    assert registry.parse("router", component) == component == registry.parse("router", component.plain())
    assert component.having(size=4).params["size"] == 4 and component.params["size"] == 3


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        ({"name": "dummy"}, "size", "missing; it must be a whole number from 1 to 10"),
        ({"name": "dummy", "size": 0}, "size", "must be a whole number from 1 to 10, got 0"),
        ({"name": "dummy", "size": 3.0}, "size", "must be a whole number from 1 to 10, got 3.0"),
        ({"name": "dummy", "size": True}, "size", "must be a whole number from 1 to 10, got true"),
        ({"name": "dummy", "size": "1e0"}, "size", "got '1e0'; YAML reads it as text, write 1"),
        (
            {"name": "dummy", "size": 1, "rate": "1e3"},
            "rate",
            "got '1e3'; YAML reads it as text, write 1000.0 or 1.0e+3",
        ),
        ({"name": "dummy", "size": 1, "rate": float("nan")}, "rate", "must be a number over 0, got .nan"),
        (
            {"name": "dummy", "size": 1, "noise": {"sigma": float("inf")}},
            "noise.sigma",
            "a number from 0 to 1, got .inf",
        ),
        ({"name": "dummy", "size": 1, "noise": {"sigm": 1}}, "noise.sigm", "unknown key; did you mean sigma?"),
        (
            {"name": "dummy", "size": 1, "noise": 3},
            "noise",
            "must be true or false or a mapping with the keys sigma, got 3",
        ),
        (
            {"name": "dummy", "size": 1, "kind": "somme"},
            "kind",
            "must be one of some, other, got 'somme'; did you mean some?",
        ),
        ({"name": "dummy", "size": 1, "limit": 0}, "limit", "must be a whole number >= 1, got 0"),
        ({"name": "dummy", "size": 1, "window": [1.0]}, "window", "must be a list of 2, each a number, got a list"),
        ({"name": "dummy", "size": 1, "window": [1.0, "x"]}, "window.1", "must be a number, got 'x'"),
        (
            {"name": "dummy", "sise": 1},
            "sise",
            "unknown key of the router dummy; did you mean size? accepted: size, rate",
        ),
        ({"name": "dummy", "state": 1, "size": 1}, "state", "unknown key"),
        ({"name": "dummy", "size": 7}, "size", "must not be 7"),
        ({"name": "dumy", "size": 7}, "name", "unknown router 'dumy'; did you mean dummy? accepted: "),
        ({"size": 7}, "name", "missing; accepted: "),
        ({"name": 5}, "name", "must be text, got 5; accepted: "),
        ("dumy", "", "unknown router 'dumy'; did you mean dummy?"),
        ("dummy", "size", "missing"),
        (5, "", "must be a name or a mapping with name, got 5; accepted names: "),
        (["dummy"], "", "got a list"),
        (None, "", "got nothing (null)"),
    ],
)
def test_what_is_refused_says_path_and_accepted_values(value: object, path: str, what: str) -> None:
    found = complaint(value)
    assert found[0] == path and what in found[1]


def test_an_unknown_key_names_the_policies_that_have_it() -> None:
    path, what = complaint({"name": "static", "preemption_mode": "swap"}, "policy")
    assert path == "preemption_mode" and "; it is a parameter of vllm_v0; " in what
    assert "; it is a parameter of static; " in complaint({"name": "vllm", "batch_size": 4}, "policy")[1]
    assert "is a parameter" not in complaint({"name": "vllm", "nonsense": 4}, "policy")[1]


def test_huge_integers_are_refused_not_converted() -> None:
    assert complaint({"name": "dummy", "size": 1, "rate": 10**400})[0] == "rate"
    assert complaint({"name": "dummy", "size": 10**400})[1].endswith("got a whole number of over 30 digits")


def test_lengths_may_be_a_plain_number() -> None:
    assert registry.parse("lengths", 5) == Component("fixed", {"tokens": 5})
    assert complaint(0, "lengths") == ("", "must be a whole number from 1 to 10000000, got 0")
    assert complaint(True, "lengths")[1].startswith("must be a whole number of tokens, a name or")
    assert complaint("1e3", "lengths")[1].endswith("got '1e3'; YAML reads it as text, write 1000")


def test_infinity_is_taken_only_where_a_parameter_allows_it() -> None:
    assert registry.parse("router", {"name": "dummy", "size": 1, "rate": float("inf")}).params["rate"] == float("inf")


def test_the_listing_comes_from_the_same_fields() -> None:
    rows = {row["name"]: row for row in registry.parameters(Dummy)}
    assert list(rows) == ["size", "rate", "kind", "limit", "noise", "window"]
    assert rows["size"] == {
        "name": "size", "type": "a whole number from 1 to 10", "default": None, "required": True,
        "help": "how big, tokens",
    }  # fmt: skip
    assert rows["rate"]["default"] == 2.0 and rows["kind"]["type"] == "one of some, other"
    assert registry.help_line(Dummy) == "The line of help."


def test_registration_guards() -> None:
    class Plain:
        pass

    with pytest.raises(TypeError, match="must be a dataclass"):
        registry.register("router", "plain")(Plain)

    @dataclass
    class Other:
        """Another of that name."""

    with pytest.raises(ValueError, match="two classes"):
        registry.register("router", "dummy")(Other)

    @dataclass
    class Ambiguous:
        limit: int | None = 5

    with pytest.raises(TypeError, match="None must be its default"):
        registry.parameters(Ambiguous)


@pytest.mark.parametrize("kind", sorted(registry.PACKAGES))
def test_every_registered_class_lists_itself_with_help(kind: str) -> None:
    for name in registry.names(kind):
        cls = registry.get(kind, name)
        assert registry.help_line(cls), name
        for row in registry.parameters(cls):
            assert cls is Dummy or row["help"], f"{kind} {name}: {row['name']} has no line of help"
