"""`python -m sim schema`: every valid scenario satisfies it, short or long, and the usual slips do not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import sim
from sim import registry
from sim.cli import main
from sim.schema import schema
from tests import random_cases

SCENARIOS = sorted((Path(__file__).parent.parent / "scenarios").glob("*.yaml"))
WHOLE = schema()
VALIDATOR = Draft202012Validator(WHOLE)
SHORT: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "gpu": "h100_sxm",
    "workload": {
        "num_requests": 10,
        "arrivals": {"name": "poisson", "rate_per_s": 8},
        "prompt_tokens": {"name": "lognormal", "mean": 512, "cv": 1},
        "output_tokens": 20,
    },
}


def problems(data: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def changed(path: str, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(SHORT))
    node, *keys = data, *path.split(".")
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value
    return data


def test_it_is_a_schema_and_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    Draft202012Validator.check_schema(WHOLE)
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == WHOLE


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_shipped_scenarios_satisfy_it(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text())) == []
    assert problems(yaml.safe_load(sim.load(path).to_yaml())) == []


def test_whatever_the_check_accepts_satisfies_it() -> None:
    for seed in range(200):
        data, _ = random_cases.case(random.Random(seed))
        made = random_cases.scenario_of(data)
        assert problems(data) == [] and problems(yaml.safe_load(made.to_yaml())) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gpu", "H100-SXM"),
        ("gpu", {"name": "h100_sxm", "bf16_tflops": 500}),
        ("model", "Llama-3.1-8B"),
        ("model", "models/config.json"),
        ("model", {"name": "llama-3.1-8b", "num_hidden_layers": 16}),
        ("policy", "static"),
        ("engine", None),
        ("router", "power_of_two"),
        ("cost", {"name": "linear", "base_s": 0.01, "noise": {"sigma": 0.1}}),
        ("cost", {"name": "roofline", "noise": False}),
        ("workload.prefix", {"tokens": 100, "groups": 3, "popularity": "zipf"}),
        ("workload.samples", 8),
        ("workload.arrivals", "batch"),
        ("workload.arrivals", {"name": "gamma", "rate_per_s": 3, "burstiness": float("inf")}),
        ("workload.arrivals", {"name": "piecewise", "points": [[0, 1], [5, 2.5]]}),
        ("policies", {"a": "vllm", "b": {"name": "static", "batch_size": 4}}),
    ],
)
def test_what_it_accepts(path: str, value: Any) -> None:
    assert problems(changed(path, value)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gpu", "h100_smx"),
        ("model", "llama-3.1-9b"),
        ("polcy", "vllm"),
        ("policy", "vlm"),
        ("policy", {"name": "vllm", "max_num_seq": 3}),
        ("policy", {"name": "vllm", "max_num_seqs": "many"}),
        ("policy", {"max_num_seqs": 3}),
        ("engine.block_sise", 3),
        ("engine.gpu_memory_utilization", 1.5),
        ("workload.arrivals", "poisson"),
        ("workload.arrivals", {"name": "poisson", "rate_per_s": 0}),
        ("workload.arrivals", {"name": "piecewise", "points": [[0, 1], [5]]}),
        ("workload.prompt_tokens", "512"),
        ("workload.prefix", {"groups": 3}),
        ("workload.rate", 3),
        ("replicas", 0),
        ("seed", 1.5),
    ],
)
def test_what_it_finds(path: str, value: Any) -> None:
    data = changed(path, value)
    assert problems(data)
    with pytest.raises(sim.ScenarioError):  # it is never stricter than the check
        sim.from_mapping(data)


def test_every_name_and_parameter_is_described() -> None:
    for kind in registry.PACKAGES:
        mappings = {option["title"]: option for option in WHOLE["$defs"][kind]["anyOf"] if "title" in option}
        assert list(mappings) == registry.names(kind)
        for name, option in mappings.items():
            rows = registry.parameters(registry.get(kind, name))
            assert list(option["properties"]) == ["name", *(row["name"] for row in rows)]
            assert option["description"]
            for row in rows:
                assert option["properties"][row["name"]].get("description") == (row["help"] or None)


def test_keys_are_described_or_refer_to_what_is() -> None:
    for name in ("Workload", "RequestClass", "Engine", "Prefix", "Pool", "Cluster"):
        for key, value in WHOLE["$defs"][name]["properties"].items():
            assert "description" in value or "$ref" in json.dumps(value), f"{name}.{key}"
    for key, value in WHOLE["properties"].items():
        assert "description" in value or "$ref" in json.dumps(value), key
