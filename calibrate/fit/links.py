"""Collectives: all-reduce by the simulator's own form, one group size after the other; the rest as floor and bandwidth.

What the others send on the busiest link is counted as NCCL's tests count bus bandwidth: (n - 1)/n of the bytes of an
all-gather, a reduce-scatter or an all-to-all, 2 (n - 1)/n of those of an all-reduce, all of those sent to a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.forms import AllReduce, Group, Machine
from sim.gpus import GPU

from ..data import read_columns, times, whole_numbers
from ..features import all_reduce_operator
from ..split import held_out
from .kinds import Fitted
from .points import Floats, Points, machine, points
from .solve import Number, errors, solve

SEGMENTS = (
    Number("one_shot_floor", 1e-7, 1e-3, (3e-6, 1e-5), 0.0, 1e-3),
    Number("one_shot_fraction", 1e-3, 1.0, (0.1, 0.3, 0.6), 1.0, 1.0),
    Number("ring_floor", 1e-7, 1e-3, (5e-6, 2e-5, 1e-4), 0.0, 1e-3),
    Number("ring_fraction", 1e-3, 1.0, (0.1, 0.4, 0.8), 1.0, 1.0),
)
RUNS = 20  # the lesser of two lines has many local optima
PER_NUMBER = 2  # points: the tables have about 20 a group, and little noise
FLOOR = Number("floor_s", 1e-7, 1e-2, (1e-5,), 0.0, 1e-2)
SPEED = Number("gb_per_s", 0.1, 2000.0, (20.0, 300.0), 0.1, 2000.0)
GROWS = Number("floor_per_gpu_s", 1e-9, 1e-3, (1e-6,), 0.0, 1e-3)
NCCL = {"all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all"}
# GPUs of network/*.csv as they are called there, and which stand for a GPU without measurements of its own
PAIRS = {"h100_sxm": "H100-SXM-80GB", "h200_sxm": "H200"}
NODES = {"h100_sxm": "h100_dgx", "h200_sxm": "h100_dgx", "a100_sxm": "a100_dgx"}


def fit_all_reduce(gpu: GPU, engine: str, frame: pd.DataFrame, path: Path, roofline: bool = False) -> Fitted | None:
    """The quicker of two algorithms for each number of GPUs; roofline: one alone.

    Kernels of CUDA graphs alone, where there are such.
    """
    frame = frame[(frame["backend"] == engine) & (frame["op"] == "all_reduce")]
    graphs = frame["kernel"].str.endswith("_graph")
    frame = frame[graphs] if graphs.any() else frame
    if frame.empty or gpu.link_gb_per_s is None:
        return None
    groups: dict[int, dict[str, dict[str, float]]] = {}
    bounds: list[str] = []
    tests: list[tuple[Floats, Floats]] = []
    seen = machine(gpu)
    for gpus in map(int, sorted(frame["num_gpus"].unique())):
        rows = frame[frame["num_gpus"] == gpus]
        held = held_out(rows, "collectives")
        train, test = (points(part, all_reduce_operator) for part in (rows[~held], rows[held]))
        name = f"all_reduce among {gpus}"
        what = f"{path}: {name}"

        def predict(values: Mapping[str, Any], at: int = gpus, these: Points = train) -> Floats:
            return _seconds(at, _group(values), these, seen)

        one: tuple[str, ...] = ()
        if not roofline:
            found = solve(SEGMENTS, predict, train.seconds, what, PER_NUMBER, RUNS)
            one = found.told(name) or _unused(_group(found.values), train, gpus, seen, name)
        if one or roofline:  # describes all sizes
            bounds += [f"{line}; one algorithm alone fitted" for line in one]
            found = solve(SEGMENTS[2:], predict, train.seconds, what, PER_NUMBER)
            bounds += found.told(name)
        groups[gpus] = _group(found.values)
        tests.append((_seconds(gpus, groups[gpus], test, seen), test.seconds))
    predicted, measured = (np.concatenate(part) for part in zip(*tests, strict=True))
    values: dict[str, Any] = {"by_gpus": groups}
    versions = ", ".join(sorted(frame["version"].unique()))
    scores = {**errors(predicted, measured), "held_out": True}
    return Fitted("all_reduce", values, AllReduce(**values), scores, tuple(bounds), (), engine, versions)


def _seconds(gpus: int, group: Mapping[str, Any], these: Points, seen: Machine) -> Floats:
    form = AllReduce(by_gpus={gpus: Group.model_validate(group)})
    return np.asarray(form.seconds(these.operator, seen))


def _unused(group: Mapping[str, Any], train: Points, gpus: int, seen: Machine, name: str) -> tuple[str, ...]:
    """A complaint if one of both algorithms is the quicker at fewer than two sizes: its numbers mean nothing."""
    one_shot, ring = (_seconds(gpus, {each: group[each]}, train, seen) for each in ("one_shot", "ring"))
    ahead = int(np.sum(one_shot < ring))
    if min(ahead, len(train) - ahead) >= 2:
        return ()
    return (f"{name}: {'one_shot' if ahead < 2 else 'ring'} is nowhere the quicker",)


def _group(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        name: {"floor_s": values[f"{name}_floor"], "bandwidth_fraction": values[f"{name}_fraction"]}
        for name in ("one_shot", "ring")
        if f"{name}_floor" in values
    }


@dataclass(frozen=True)
class Network:
    """Floors and bus bandwidths by the name of the collective, their errors, and notes."""

    values: dict[str, dict[str, float]]
    errors: dict[str, dict[str, Any]]
    bounds: tuple[str, ...]
    notes: tuple[str, ...]


def fit_network(gpu: str, frame: pd.DataFrame | None, root: Path) -> Network:
    """The other collectives: NCCL's inside a node, and between nodes where some card's were measured."""
    found = Network({}, {}, (), ())
    if frame is not None:
        nccl = frame[frame["backend"] == "nccl"]
        for op, name in NCCL.items():
            rows = nccl[nccl["op"] == op]
            if len(rows):
                gpus = rows["num_gpus"].to_numpy()
                sent = (gpus - 1) / gpus * rows["bytes"].to_numpy()
                found = _more(found, name, rows, sent, gpus, "collectives.csv")
    network = root / "network"
    if gpu in PAIRS and (file := network / "apex_collectives.csv").is_file():
        rows = _apex(file)
        rows = rows[(rows["gpu"] == PAIRS[gpu]) & (rows["op"] == "sendrecv") & (rows["dtype"] == "half")]
        found = _more(found, "p2p_intra_node", rows, rows["bytes"].to_numpy(), None, str(file))
    if gpu in NODES and (file := network / "vidur_network.csv.gz").is_file():
        rows = _vidur(file)
        rows = rows[rows["system"] == NODES[gpu]]
        if "p2p_intra_node" not in found.values:
            here = rows[(rows["op"] == "send_recv") & (rows["devices_per_node"] == 2)]
            found = _more(found, "p2p_intra_node", here, here["bytes"].to_numpy(), None, str(file))
        across = rows[(rows["op"] == "send_recv") & (rows["devices_per_node"] == 1)]
        found = _more(found, "p2p_cross_node", across, across["bytes"].to_numpy(), None, str(file))
        across = rows[(rows["op"] == "all_reduce") & (rows["num_gpus"] > rows["devices_per_node"])]
        if len(across):
            gpus = across["num_gpus"].to_numpy()
            sent = 2 * (gpus - 1) / gpus * across["bytes"].to_numpy()
            found = _more(found, "all_reduce_cross_node", across, sent, gpus, str(file))
        if gpu == "h200_sxm":
            note = "p2p_cross_node is H100's: the same links and network cards"
            found = Network(found.values, found.errors, found.bounds, (*found.notes, note))
    return found


def _more(found: Network, name: str, rows: pd.DataFrame, sent: Floats, gpus: Any, what: str) -> Network:
    """One collective added: floor, growing with the GPUs that take part, and bandwidth."""
    measured = rows["latency_us"].to_numpy() * 1e-6
    held = held_out(rows, "collectives")
    several = gpus is not None and len(np.unique(gpus)) > 1
    more = gpus - 2 if several else np.zeros(len(rows))
    numbers = (FLOOR, SPEED, *((GROWS,) if several else ()))

    def seconds(values: Mapping[str, Any], which: Any) -> Floats:
        floor = values["floor_s"] + values.get("floor_per_gpu_s", 0.0) * more[which]
        return np.asarray(floor + sent[which] / (values["gb_per_s"] * 1e9))

    solution = solve(numbers, lambda values: seconds(values, ~held), measured[~held], f"{what}: {name}")
    values = {number.name: float(solution.values[number.name] or 0.0) for number in numbers}
    scores = errors(seconds(values, held), measured[held])
    return Network(
        {**found.values, name: values}, {**found.errors, name: scores}, found.bounds + solution.told(name), found.notes
    )


def _apex(path: Path) -> pd.DataFrame:
    """nccl-tests of one GPU a row; the file ends in half a row, whose dtype is missing."""
    frame = read_columns(path, ("gpu", "op", "dtype", "size_kb", "time_us"), ["gpu", "op"])
    if len(frame) and frame["dtype"].iloc[-1] == "":
        frame = frame[:-1].copy()
    frame["latency_us"] = times(path, frame, "time_us")
    frame["bytes"] = (frame["size_kb"].astype(float) * 1024).astype(np.int64)
    return frame[frame["bytes"] > 0]


def _vidur(path: Path) -> pd.DataFrame:
    frame = read_columns(path, ("system", "op", "num_gpus", "devices_per_node", "bytes", "median_ms"), ["system", "op"])
    for name in ("num_gpus", "devices_per_node", "bytes"):
        frame[name] = whole_numbers(path, frame, name)
    frame["latency_us"] = 1e3 * times(path, frame, "median_ms")
    return frame
