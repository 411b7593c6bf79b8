"""Many simulations over the cores of the machine; the bytes they write do not depend on how many run at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import results
from .errors import ScenarioError

if TYPE_CHECKING:
    from .frontend import Progress
    from .results import Job, Outcome


def run_all(
    jobs: Sequence[Job],
    processes: int | None = None,
    *,
    progress: Callable[[Job], Progress | None] = lambda _: None,
    ended: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run simulations, `processes` at a time (None: as many as there are cores), and return what they gave, in order.

    With one process they run here, and `progress` makes the callback of each; else in joblib's processes (or on
    whatever backend `joblib.parallel_config` names), and `ended` is called with each as it ends.
    """
    if len(jobs) == 1 or processes == 1:
        return [_here(job, progress, ended) for job in jobs]
    import joblib  # late: one simulation starts without it

    at_a_time = min(len(jobs), processes or joblib.cpu_count())
    if at_a_time == 1:
        return [_here(job, progress, ended) for job in jobs]
    # The one thing that depends on a simulation's place is its own outcome: seeds and folders are in the job.
    work = (joblib.delayed(_numbered)(number, job) for number, job in enumerate(jobs))
    outcomes: dict[int, Outcome] = {}
    pool = joblib.Parallel(at_a_time, return_as="generator_unordered", batch_size=1, pre_dispatch="2 * n_jobs")
    try:
        for number, outcome in pool(work):
            outcomes[number] = outcome
            ended(outcome)
    except joblib.externals.loky.process_executor.TerminatedWorkerError:
        raise ScenarioError(
            "a simulation's process was ended from outside, as where memory is short; try --jobs 1"
        ) from None
    return [outcomes[number] for number in range(len(jobs))]


def _here(job: Job, progress: Callable[[Job], Progress | None], ended: Callable[[Outcome], None]) -> Outcome:
    outcome = results.run(job, progress(job))
    ended(outcome)
    return outcome


def _numbered(number: int, job: Job) -> tuple[int, Outcome]:
    return number, results.run(job)
