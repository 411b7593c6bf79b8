"""The measurements that come with the project: steps of real cards, which no fit saw, from their kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.__main__ import main
from calibrate.check import points
from calibrate.data import COLUMNS, kernel_file, read_device, read_kernels
from calibrate.features import chosen, of_one_kernel
from calibrate.fit import fit_all
from sim import gpus, models
from sim.cost import Prices, find_calibration
from sim.cost.forms import Pass, Passes
from sim.cost.operators import Operator
from sim.cost.roofline import RooflinePricer
from sim.scenario import Engine

FOLDERS = sorted((Path(points.__file__).parents[1] / "measurements").iterdir())
CARDS = ("h100_sxm", "h200_sxm")


def folder(card: str, shape: str) -> Path:
    return next(each for each in FOLDERS if each.name == f"{card}-{shape}")


def off(card: str, shape: str, calibration: str) -> pd.DataFrame:
    """Whole steps, with the error of each in per cent."""
    found = points.own_steps(folder(card, shape), gpus.parse(card), find_calibration(calibration, None), "torch")
    return found.assign(off=100 * (found["predicted_s"] / found["measured_s"] - 1))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = float(value)
    return found


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.name)
def test_a_folder_is_whole_and_of_the_card_in_its_name(path: Path) -> None:
    device = read_device(path)
    assert path.name.startswith(device["gpu"]["name"]) and device["device"] == "cuda"
    for kind in ("steps", "gemm", "attention_prefill", "attention_decode", "elementwise"):
        frame = read_kernels(path / f"{kind}.csv", kind)
        assert len(frame) >= 50 and not frame.duplicated(subset=list(COLUMNS[kind][:-1])).any()


@pytest.mark.parametrize("card", CARDS)
def test_the_shipped_file_is_what_the_fit_gives(card: str) -> None:
    result = fit_all(folder(card, "llama-3.1-8b"), card, "torch")
    shipped = find_calibration(f"{card}-torch", None)
    for each in result.fitted:
        found, expected = (flat(form.model_dump()) for form in (getattr(shipped.operators, each.key), each.form))
        assert found == pytest.approx(expected, rel=0.02), each.key


@pytest.mark.parametrize("card", CARDS)
def test_steps_are_predicted_from_kernels(card: str) -> None:
    """8B's from its own kernels, 70B's (a GPU of four) from those of 8B. Peaks alone are far off."""
    for shape, median, p90 in (("llama-3.1-8b", 6, 12), ("llama-3.1-70b-tp4", 9, 14)):
        steps = off(card, shape, f"{card}-torch")
        ideal = off(card, shape, "ideal")
        for key, group in steps.groupby(["operator", "range"]):
            if key[1] == "prefill, past":  # another attention kernel
                continue
            size = group["off"].abs()
            assert size.median() < median and size.quantile(0.9) < p90, key
            assert size.median() < 0.5 * ideal.loc[group.index, "off"].abs().median(), key


@pytest.mark.parametrize("card", CARDS)
def test_one_number_for_all_passes_misses_steps_further(card: str) -> None:
    shipped = find_calibration(f"{card}-torch", None)
    operators = shipped.operators
    together = operators.elementwise.model_copy(update={"by_pass": {}})
    coarse = shipped.model_copy(update={"operators": operators.model_copy(update={"elementwise": together})})
    path, gpu = folder(card, "llama-3.1-8b"), gpus.parse(card)
    errors = []
    for calibration in (shipped, coarse):
        steps = points.own_steps(path, gpu, calibration, "torch")
        steps = steps[steps["range"] == "decode"]
        errors.append(float((steps["predicted_s"] / steps["measured_s"] - 1).abs().median()))
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("card", CARDS)
def test_published_tables_foretell_products_of_our_cards(card: str) -> None:
    """vLLM's products in bf16 are PyTorch's: a calibration fitted to other people's cards, held to ours."""
    for shape in ("llama-3.1-8b", "llama-3.1-70b-tp4"):
        found, _ = points.kernels(
            folder(card, shape), gpus.parse(card), find_calibration(f"{card}-vllm", None), "torch", everything=True
        )
        found = found[found["operator"] == "matrix product bf16"]
        assert ((found["predicted_s"] / found["measured_s"] - 1).abs()).median() < 0.06


def test_attention_behind_a_past_is_kept_only_where_its_kernel_is_the_same() -> None:
    frame = pd.DataFrame(
        {
            "backend": ["torch"] * 4 + ["vllm"],
            "kernel": ["cudnn", "cudnn_eager", "flash", "cudnn", "other"],
            "past_len": [0, 0, 512, 512, 512],
        }
    )
    assert of_one_kernel(frame).tolist() == [True, True, False, True, True]


def test_norms_are_a_norm_and_an_addition() -> None:
    path = kernel_file(folder("h100_sxm", "llama-3.1-8b"), "h100_sxm", "elementwise")
    raw = read_kernels(path, "elementwise")
    found = chosen(raw, "elementwise", "torch").set_index(["op", "tokens"])
    at = raw.set_index(["op", "tokens"])["latency_us"]
    assert found.loc[("norms", 64), "latency_us"] == pytest.approx(at["rmsnorm", 64] + at["add", 64])
    assert found.loc[("norms", 64), "bytes"] == 64 * 4096 * 4 * 2  # sum and branch in, sum and normed out
    assert set(found.index.get_level_values("op")) == {"norms", "rope", "silu_mul", "embedding"}


def test_a_pass_with_its_own_numbers_costs_those() -> None:
    form = Passes(bandwidth_fraction=0.5, floor_s=1e-6, by_pass={"rope": Pass(bandwidth_fraction=0.1, floor_s=2e-5)})
    calibration = find_calibration("ideal", None)
    operators = calibration.operators.model_copy(update={"elementwise": form})
    prices = Prices(gpus.parse("h100_sxm"), calibration.model_copy(update={"operators": operators}))
    moved = np.array([0, 3_350_000_000])
    for name, share, floor in (("rope", 0.1, 2e-5), ("norms", 0.5, 1e-6)):
        found = prices.seconds(Operator(name, "elementwise", 0, moved))
        np.testing.assert_allclose(found, [floor, 1e-3 / share + floor])


def test_a_folder_is_fitted_as_the_card_that_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = folder("h200_sxm", "llama-3.1-8b"), tmp_path / "out.yaml"
    words = ["fit", "--engine", "torch", "--out", str(out), "--data"]
    assert main([*words, str(path), "--gpu", "h100_sxm"]) == 2
    assert "was measured on h200_sxm, got 'h100_sxm'" in capsys.readouterr().err
    (tmp_path / "device.json").write_text("{")
    assert main([*words, str(tmp_path), "--gpu", "h100_sxm"]) == 2
    assert "device.json: not JSON" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("gpus_in_group", "told"), [(1, False), (2, True)])
def test_all_reduces_that_were_not_measured_are_told(gpus_in_group: int, told: bool) -> None:
    found, gpu = find_calibration("h100_sxm-torch", None), gpus.parse("h100_sxm")
    engine = Engine(tensor_parallel_size=gpus_in_group)
    label = RooflinePricer(models.parse("llama-3.1-8b"), gpu, engine, found).label
    assert label.endswith("all-reduces not measured and at their ideal") == told
