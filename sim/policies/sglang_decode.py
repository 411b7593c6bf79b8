"""SGLang's decode steps: who runs, and who loses its memory when it runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..request import LEAVING

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Sequence
    from .sglang import SGLang
    from .sglang_queue import Waiting

RETRACT_TOKENS = 20  # each of those left finds room for so many after a retraction


def drop_last(batch: Batch, queue: Waiting) -> bool:
    """Those whose last output is under way leave the decode batch."""
    if not batch.lag or not batch.leaving:
        return False
    before = len(queue.run)
    queue.run = [seq for seq in queue.run if seq.state != LEAVING]
    if len(queue.run) < before:
        queue.full = False
        return True
    return False


def decode(policy: SGLang, batch: Batch, queue: Waiting) -> None:
    """All that run compute a token, after as many were retracted as the memory demands."""
    if not queue.run:
        return
    kv = batch.kv
    before = len(queue.run)
    left = drop_last(batch, queue)
    if not queue.run:
        return
    if fits(batch):
        queue.ratio = policy.decayed(queue.ratio)
    elif left:  # their memory comes free soon
        return
    else:
        retract(policy, batch, queue)
    if len(queue.run) < before:
        queue.full = False
    if not queue.run:
        batch.plan.again = True
        return
    kv.make_room(len(queue.run))
    batch.take_all()
    queue.step = "decode"
    queue.work += queue.stale


def fits(batch: Batch) -> bool:
    need = batch.decodes.next_growth()
    batch.kv.make_room(need)
    return batch.kv.free >= need


def retract(policy: SGLang, batch: Batch, queue: Waiting) -> None:
    """The last in order of outputs lose their KV, and are computed anew later."""

    def key(seq: Sequence) -> tuple[float, int, int]:
        urgency = queue.urgency(seq) if policy.retraction_policy == "priority" else 0
        return urgency, -batch.known_outputs(seq), seq.prompt

    run = queue.run
    run.sort(key=key)
    lost: list[Sequence] = []
    while len(run) > 1 and (not lost or not fits(batch)):
        lost.append(run.pop())
        lose(batch, lost[-1])
        batch.kv.make_room(-(-RETRACT_TOKENS * len(run) // batch.kv.size))
    if len(run) == 1 and not fits(batch):
        batch.abort(run.pop(), "aborted: the KV cache is too small for it beside a prompt under way")
    batch.reorder(run, queue.highest + 1)
    queue.highest += len(run)
    queue.ratio = 0
    if run:
        outputs = sum([batch.known_outputs(seq) for seq in run])
        queue.ratio = min(1, (outputs + RETRACT_TOKENS * len(run)) / (sum([seq.limit for seq in run]) + 1))
    for seq in lost:
        batch.enqueue(seq)
    queue.retracted = lost


def lose(batch: Batch, seq: Sequence) -> None:
    """seq gives up its KV, and the output under way with it."""
    batch.preempt(seq, lose=True)
    seq.mark.hit = 0
