"""YAML with positions: the traps, the places, the overrides."""

import pytest

from sim import yamlfile
from sim.errors import ScenarioError


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        document = yamlfile.mapping(text, "x.yaml")
        for override in overrides:
            document.set(override)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_places_are_those_of_the_innermost_key_or_list_item() -> None:
    document = yamlfile.mapping("a:\n  b: 1\n  c:\n    - 5\n    - {d: 6,\n       e: 7}\n", "x.yaml")
    assert document.data == {"a": {"b": 1, "c": [5, {"d": 6, "e": 7}]}}
    places = {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1, "d"): 5,
        ("a", "c", 1, "e"): 6,
    }
    for path, line in places.items():
        assert document.place(path) == f"x.yaml:{line}"
    assert document.place(("a", "b", "missing")) == "x.yaml:2"
    assert str(document.error(("a", "c", 0), "is wrong")) == "x.yaml:4: a.c.0: is wrong"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", "1e3"),
        ("1.0e3", "1.0e3"),
        ("1.0e+3", 1000.0),
        ("1_000", 1000),
        ("0x10", 16),
        ("0", 0),
        ("-5", -5),
        ("010", "010"),
        ("12:30", "12:30"),
        ("1:30.5", "1:30.5"),
        ("2023-11-16", "2023-11-16"),
        ("on", True),
        ("No", False),
        ("~", None),
        ("'5'", "5"),
        ("-.inf", float("-inf")),
        ("=", "="),
        ("''", ""),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = yamlfile.mapping(f"a: {text}", "x.yaml").data["a"]
    assert found == value and type(found) is type(value)


def test_keys_stay_as_written() -> None:
    assert yamlfile.mapping("on: 1\n12: 2\n~: 3", "x.yaml").data == {"on": 1, "12": 2, "~": 3}


def test_a_repeated_key_gives_the_second_ones_line_and_path() -> None:
    message = refused("a:\n  b: 1\n  c: 2\n  'b': 3\n")
    assert message.startswith("x.yaml:4: a.b: repeated key; it stands in line 2 already")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml:1: is empty"),
        ("# only this\n", "x.yaml:1: is empty"),
        ("- 1", "x.yaml:1: must be a mapping of keys to values, got a list"),
        ("word", "x.yaml:1: must be a mapping of keys to values, got 'word'"),
        ("a: 1\nb: [1,\n", "x.yaml:2: not valid YAML: "),
        ("a: 1\n b: 2", "x.yaml:2: not valid YAML: "),
        ("a: 1\n\tb: 2", "x.yaml:2: not valid YAML: "),
        ("a: 1\n---\nb: 2", "x.yaml:2: not valid YAML: expected a single document"),
        ("a: 1\nb: \x01", "x.yaml:"),
        ("a: *b", "x.yaml:1: not valid YAML: found undefined alias"),
        ("a: !!python/object:os.system x", "x.yaml:1: a: the tag !!python/object:os.system is not supported"),
        ("a: !thing {b: 1}", "x.yaml:1: a: the tag !thing is not supported"),
        ("a: !!int word", "x.yaml:1: a: 'word' is not a value of the tag !!int"),
        ("a: 1\n? [1, 2]\n: 3", "x.yaml:2: a key must be a plain word"),
        ("a: &x [*x]", "x.yaml:1: a.0.0: is nested more than 50 levels deep"),
        ("a: " + "[" * 800 + "]" * 800, "x.yaml:1: a.0.0: is nested more than 50 levels deep"),
        ("a: " + "[" * 5000, "x.yaml:1: not valid YAML: "),
        ("a: " + "9" * 5000, "x.yaml:1: a: '999"),
    ],
)
def test_what_is_no_scenario_is_refused(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_aliases_that_stand_for_very_many_values_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "holds over 200000 values" in refused("\n".join(lines))


def test_files_that_cannot_be_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    for path, message in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "is a directory"),
        (latin, "is not UTF-8 text"),
    ):
        with pytest.raises(ScenarioError) as caught:
            yamlfile.read(path)
        assert str(caught.value).startswith(f"{path}:") and message in str(caught.value)
    with pytest.raises(ScenarioError, match=r"latin\.yaml:2: "):
        yamlfile.read(latin)


def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: word\r\n")
    document = yamlfile.read(file)
    assert document.data == {"a": 1, "b": {"c": "word"}} and document.place(("b", "c")) == f"{file}:3"


def test_overrides_set_create_and_replace() -> None:
    document = yamlfile.mapping("a: {b: 1}\nc: word\nd: null\ne: false\n", "x.yaml")
    for override in (
        "a.b=2",
        "a.x.y=[1, 2]",
        "c.size=5",
        "d.e=yes",
        "e.sigma=0.5",
        "f=",
        "g={h: 1}",
        "cost.noise=false",
    ):
        document.set(override, {"cost": "roofline"})
    assert document.data == {
        "a": {"b": 2, "x": {"y": [1, 2]}},
        "c": {"name": "word", "size": 5},
        "d": {"e": True},
        "e": {"sigma": 0.5},
        "f": None,
        "g": {"h": 1},
        "cost": {"name": "roofline", "noise": False},
    }
    assert str(document.error(("g", "h"), "is wrong")) == "--set g={h: 1}: g.h: is wrong"
    assert document.place(("c", "name")) == "x.yaml:2"


def test_an_override_changes_no_other_use_of_an_alias() -> None:
    document = yamlfile.mapping("a: &x {b: 1}\nc: *x\n", "x.yaml")
    document.set("c.b=2")
    assert document.data == {"a": {"b": 1}, "c": {"b": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: must be KEY=VALUE"),
        ("=1", "--set =1: must be KEY=VALUE"),
        ("a..b=1", "--set a..b=1: must be KEY=VALUE"),
        ("a.b.c=1", "--set a.b.c=1: a.b: is 1 here, it has no keys to set"),
        ("l.0=1", "--set l.0=1: l: is a list here"),
        ("a=[1", "--set a=[1: not valid YAML: "),
        ("a={b: 1, b: 2}", "--set a={b: 1, b: 2}: b: repeated key"),
        ("a=1\n\n: 2", "--set a=1 : 2: "),
    ],
)
def test_overrides_that_are_refused(override: str, message: str) -> None:
    assert refused("a: {b: 1}\nl: [1]", override).startswith(message)
