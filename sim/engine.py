"""The engine of one replica: it asks its policy, prices, waits and commits. The only part that knows the clock."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from heapq import heappush
from typing import TYPE_CHECKING, Any

from .environment import STEP_END, Call, Environment
from .kv import OutOfBlocks
from .lane import Lane
from .request import DECODING, DONE, FAILED, FINISHED, REJECTED, Sequence
from .stretch import Stretch, horizon
from .watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from .batch import WaitingQueue
    from .cost import StepCost
    from .kv import BlockPool
    from .policies.base import Policy
    from .steplog import StepLog


LIVELOCK = "livelock: sequences preempt each other for ever and no token comes; the KV cache is too small"


class Engine:
    """One lane of one replica. Steps are decided at D(i) = max(time of the plan, E(i - depth)), and end at E(i).

    Runs of like steps are stretches: decided and priced at once, cut where an arrival asks for a new decision, settled
    when the clock has passed them. With `fast_forward` off every stretch is one step long, with the same result.

    `on_left` is told of each sequence whose last token is decided, with the time at which that token will exist (now
    or later); `on_done` of each whose last token is processed, or that has failed.
    """

    def __init__(
        self,
        env: Environment,
        number: int,
        policy: Policy,
        kv: BlockPool,
        cost: StepCost,
        log: StepLog,
        max_model_len: int,
        fast_forward: bool = True,
        on_done: Callable[[Sequence], None] = lambda seq: None,
        on_left: Callable[[Sequence, float], None] | None = None,
        waiting: WaitingQueue | None = None,
    ) -> None:
        self.env, self.number, self.policy, self.cost, self.log = env, number, policy, cost, log
        self.depth = 2 if getattr(policy, "async_scheduling", False) else 1  # batches decided and not yet processed
        queue: Any = policy.queue() if waiting is None else waiting
        self.lane = Lane(queue, kv, self.depth - 1, max_model_len)
        if hasattr(queue, "attach"):
            queue.attach(self.lane)
        log.depth, log.ends = self.depth, self.lane.ends
        log.describe = getattr(policy, "describe", None)
        self.fast_forward = fast_forward
        self.on_done, self.on_left = on_done, on_left
        self.on_refused = on_done  # told of each whom the engine's queue refuses
        # Where they are recorded, a release changes them, and who has given back what is not known within a stretch.
        self._shows_evictable = log.content is not None and kv.headroom > 0
        self._decides_idle = getattr(policy, "decides_idle", False)
        self.more_may_come: Callable[[], bool] = lambda: False  # whether a request may still reach this engine
        self.delivers_whole = getattr(policy, "delivers_whole", False)
        self.pcie_bytes_per_s = getattr(policy, "pcie_gb_per_s", 0.0) * 1e9
        self.watchdog = Watchdog()
        self.stalled = False
        self.why = ""  # it is stalled
        self.watched = False  # somebody asks for the KV blocks in use
        self.decisions = 0
        self.prefill_keys = self.prefill_pairs = 0  # read by prompts; (query, visible key) of prompts: for utilisation
        self._prefilled: list[tuple[int, int, list[tuple[int, int]]]] = []  # steps not yet among them: keys, prompts
        self._inbox: deque[Sequence] = deque()  # arrived, not yet seen by a decision
        self._stretch = Stretch()  # what is priced and not yet settled; empty if nothing is
        self._held: list[Sequence] = []  # ended, delivered when the batch has ended
        self._now_s = 0.0
        self._idle = True
        self._used_before = (-1.0, 0)  # when it last woke, and the KV blocks in use until then
        self._wake_s = -1.0  # when the wake-up that counts comes; others are out of date
        self._call, self._rank = Call(self._wake), STEP_END + number
        self._queue: Any = env._queue
        self._serial = env._eid

    PREFILLED = 1000

    def _count_prefill(self, held_back: int) -> None:
        """All but the last few, which a stop may still undo."""
        kept = len(self._prefilled) - held_back
        for _, keys, prompts in self._prefilled[:kept]:
            self.prefill_keys += keys
            self.prefill_pairs += sum([new * (past + past + new + 1) for new, past in prompts]) // 2
        del self._prefilled[:kept]

    def submit(self, seq: Sequence) -> None:
        """seq has come, at seq.reach_s, which is now or, for what a step's end has caused, the next instant."""
        if self.stalled:
            seq.status, seq.reason = FAILED, self.why
            self.on_done(seq)
            return
        self._inbox.append(seq)
        if self._idle:
            if not self.env._now <= self._wake_s <= seq.reach_s:  # no earlier wake-up is due
                self._wake_at(seq.reach_s)
        elif self._stretch.stop and self._cut(seq.reach_s):
            self._wake_next()

    def kv_blocks_used(self) -> int:
        """After the last decision strictly before now, also where it is one of a stretch that is not settled.

        Not now: what happens at this very instant may or may not have happened yet, with stretches or without.
        """
        now_s, kv = self.env._now, self.lane.kv
        woke_s, before = self._used_before
        if woke_s >= now_s:
            return before
        used, stretch, depth = kv.used, self._stretch, self.depth
        if stretch.stop:  # nothing is given back within it, see `horizon`
            due = stretch.decided(self.lane.ends, now_s, depth)
            used += self.lane.decodes.blocks_within(1, due - stretch.first - 1)
        return used

    def stop(self, end_s: float) -> None:
        """The clock stops: what ends by `end_s` has ended, the rest stays unfinished."""
        lane = self.lane
        within = bisect_right(lane.ends, end_s)
        if self._stretch.stop:
            self._cut(end_s)
            self._settle()
        while lane.processed < min(within, lane.step):
            lane.process()
        self._collect()
        self._wake_s = -1.0
        self.log.stop(within)
        while self._prefilled and self._prefilled[-1][0] >= within:
            self._prefilled.pop()
        self._count_prefill(0)
        for seq in self.unfinished():
            self.lane.truncate(seq, within, self.log.ticks)
            if self.delivers_whole:
                seq.delivered_step = -1  # its tokens are never delivered
            if seq.first_step is not None and seq.first_scheduled_s >= end_s:
                seq.first_step, seq.hit_tokens = None, 0

    @property
    def working(self) -> bool:
        """Whether it still gives anything: it may bring about requests where a source reacts."""
        return bool(self._inbox) or not (self._idle or self.stalled)

    def unfinished(self) -> list[Sequence]:
        """All that has come here and not ended."""
        return [*self._held, *self.lane.stuck(), *self._inbox]

    # -- the loop

    def _wake_at(self, time_s: float) -> None:
        self._wake_s = time_s
        heappush(self._queue, (time_s, self._rank, next(self._serial), self._call))

    def _wake(self, _: Any) -> None:
        if self.env._now != self._wake_s:
            return
        self._wake_s = -1.0
        self._idle = False
        lane, inbox = self.lane, self._inbox
        ends = lane.ends
        if self._stretch.stop:
            self._settle()
        if self.watched and self.env._now > self._used_before[0]:
            self._used_before = self.env._now, lane.kv.used
        if lane.step > lane.processed:
            end_s = ends[lane.processed]
            if end_s > self._now_s:
                self._now_s = end_s
            if lane.leaving or lane.late or lane.stopping or lane.prompts:
                lane.process()
            else:
                lane.processed += 1
        else:
            self._now_s = self.env._now
        if lane.left or lane.done:
            self._collect()
        while True:
            while inbox and inbox[0].reach_s <= self._now_s:
                lane.enqueue(inbox.popleft())
            if lane.again:
                for seq in lane.again:
                    lane.enqueue(seq)
                lane.again.clear()
            if (lane.waiting or lane.running or self._decides_idle) and self._decide():
                if self._stretch.stop:
                    if inbox:  # caused by a step's end, and seen an instant later
                        self._cut(inbox[0].reach_s)
                    return self._wake_next()
                if lane.step - lane.processed < self.depth:
                    continue
            elif self.stalled:
                return
            elif lane.step == lane.processed:
                if lane.plan.again:
                    continue
                self._idle = True
                if inbox:
                    self._wake_at(inbox[0].reach_s)
                elif lane.waiting and lane.plan.wake_at_s is not None:
                    self._wake_at(lane.plan.wake_at_s)
                return
            return self._wake_next()

    def _wake_next(self) -> None:
        """Wake when the next decision is due."""
        stop = self._stretch.stop
        self._wake_at(self.lane.ends[stop - self.depth if stop else self.lane.processed])

    def _decide(self) -> bool:
        """One decision: a step, or a stretch of like steps. False if there is nothing to compute."""
        lane = self.lane
        ends, step, decodes = lane.ends, lane.step, lane.decodes
        self.decisions += 1
        now_s = lane.now_s = self._now_s
        start_s = now_s
        if ends and ends[-1] > now_s:
            start_s = ends[-1]
        lane.start_s = start_s
        plan = lane.plan
        plan.clear()
        try:
            self.policy.decide(lane, now_s)
        except OutOfBlocks as error:
            while lane.processed < step:
                lane.process()
            self._collect()
            self._fail(str(error))
            return False
        if lane.gone:
            lane.gone.clear()
        if lane.refused:
            self._refuse()
        if lane.lost:
            self.log.lose(lane.lost)
            lane.lost = 0
        entries, preempted = plan.entries, plan.preempted
        n = len(decodes.members)
        if not entries and not preempted and not plan.aborted:
            if not plan.all_decode:
                return False
            steps = horizon(lane, plan, self.watched or self._shows_evictable) if self.fast_forward else 1
            if plan.anew:
                self.cost.anew(steps, decodes.context + n, start_s, ends)
            else:
                self.cost.stretch(steps, n + plan.padding, decodes.context + n, start_s, ends, n)
            if self.log.content is not None:
                self.log.note(lane, plan, step, start_s, now_s)
            stretch = self._stretch
            stretch.first, stretch.stop, stretch.decided_s = step, step + steps, now_s
            if steps == 1:
                self._settle()
            return True
        if preempted and self.watchdog.sees_livelock(lane, self.more_may_come):
            self._fail(LIVELOCK)
            return False
        prompts, new_tokens, whole = [], 0, 0
        if plan.all_decode:
            context = decodes.context + n
        else:
            n = context = 0
        for seq, new in entries.items():
            if seq.state == DECODING:
                n += 1
                context += decodes.tick - seq.born + 1
            else:
                prompts.append((plan.padded_prompt or new, seq.computed))
                new_tokens += new
                context += seq.computed + new
                whole += seq.computed + new >= seq.known
        if plan.transfer_bytes:
            start_s += plan.transfer_bytes / self.pcie_bytes_per_s
        if n or prompts:
            decode_context = context - new_tokens - sum([past for _, past in prompts])
            emitting = n + plan.padding + whole
            ends.append(start_s + self.cost.step(n + plan.padding, decode_context, prompts, emitting))
            if prompts:
                self._prefilled.append((step, context - decode_context, prompts))
                if len(self._prefilled) > self.PREFILLED:
                    self._count_prefill(self.depth)
        else:
            ends.append(start_s)
        if self.log.content is not None:
            self.log.note(lane, plan, step, lane.start_s, now_s)
        tick = decodes.tick if n else -1
        used = lane.kv.used
        waiting = len(lane.waiting)
        whole = lane.commit()
        self.log.add(
            step, 1, tick, now_s, n + len(prompts), n + whole, new_tokens, n, context, used, 0, waiting,
            len(preempted), lane.overrun,
        )  # fmt: skip
        if lane.left:
            self._collect()
        return True

    # -- stretches

    def _cut(self, time_s: float) -> bool:
        """Something comes at `time_s`: what is decided later is to be decided anew. Whether that is anything."""
        dropped = self._stretch.cut(self.lane.ends, time_s, self.depth)
        if dropped:
            self.cost.give_back(dropped)
        return dropped > 0

    def _settle(self) -> None:
        """The stretch has been decided to its end: its steps are applied and recorded."""
        stretch, lane, log = self._stretch, self.lane, self.log
        first, steps = stretch.first, stretch.stop - stretch.first
        stretch.stop = 0
        decodes, kv = lane.decodes, lane.kv
        n, tick = len(decodes.members), decodes.tick
        context = decodes.context + n
        used = kv.used
        grown = 0
        if steps > 1:
            growth = decodes.growth(steps - 1, 1)
            grown = sum(growth)
            log.grow(growth)
        waiting = len(lane.waiting)
        released = lane.settle(first, steps, grown)
        log.add(
            first, steps, tick, stretch.decided_s, n, n, 0, n, context, used, released, waiting, 0, lane.overrun
        )  # fmt: skip
        if lane.left:
            self._collect()

    # -- who ends

    def _collect(self) -> None:
        """Pass on who has ended since the last time."""
        lane = self.lane
        left, done = lane.left, lane.done
        if left:
            lane.left = []
        if done:
            lane.done = []
        if self.delivers_whole:
            self._held += done
            if lane.running:
                return
            left, done, self._held = self._held, self._held, []
            for seq in done:
                seq.delivered_step = lane.step - 1
        if self.on_left is not None:
            for seq in left:
                step = seq.last_step if seq.delivered_step is None else seq.delivered_step
                assert step is not None
                self.on_left(seq, lane.ends[step])
        for seq in done:
            seq.status = FINISHED
            self.on_done(seq)

    def _refuse(self) -> None:
        """Whom the lane's queue refused ends: rejected, or failed if it has run."""
        refused, self.lane.refused = self.lane.refused, []
        if self.log.content is not None:
            self.log.refused += [seq.request.id for seq in refused]
        for seq in refused:
            seq.status = REJECTED if seq.first_step is None else FAILED
            seq.reason = seq.reason or "the queue is full"
            seq.state = DONE
            self.on_refused(seq)

    @property
    def present(self) -> int:
        """Requests here that have not ended, strictly before now."""
        return len(self.lane.running) + len(self.lane.waiting) + len(self._inbox)

    def _fail(self, why: str) -> None:
        """No progress is possible: all that is here fails, so does all that will come; the engine stands still."""
        self.stalled, self.why = True, why
        self.log.stop(self.lane.step)
        self._count_prefill(0)
        for seq in self.unfinished():
            self.lane.truncate(seq, self.lane.step, self.log.ticks)
            seq.status, seq.reason = FAILED, self.why
            self.on_done(seq)
        self._inbox.clear()
