"""TensorRT-LLM's micro-batch scheduler: how the tokens of a step are shared among those whom the capacity allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..request import DECODING, LEAVING

if TYPE_CHECKING:
    from ..batch import Batch
    from ..kv import Hit
    from ..request import Sequence
    from .trtllm import TRTLLM

Prompts = list[tuple["Sequence", "Hit"]]
Chunks = dict["Sequence", tuple[int, int]]  # tokens, and how many of the prompt are thought to be cached


class TokenBudget:
    """`max_num_tokens` of one decision."""

    def __init__(self, policy: TRTLLM, batch: Batch) -> None:
        self.policy, self.batch = policy, batch
        self.most = policy.max_num_tokens
        self.size = batch.kv.size

    def share(self, generating: list[Sequence] | None, prompts: Prompts) -> tuple[Chunks, list[Sequence] | None]:
        """Tokens of each prompt, and who of those that generate is in the step (None: all that decode)."""
        if not self.policy.enable_chunked_prefill:
            return self._whole_prompts(generating, prompts)
        n = len(self.batch.decodes.members) if generating is None else len(generating)
        if generating is not None and n > self.most:
            # Prompts before the one that did not fit are still seen.
            beyond = generating[self.most].order
            mixed = self.policy.capacity_scheduler_policy == "MAX_UTILIZATION"
            prompts = [each for each in prompts if mixed and each[0].order < beyond]
            generating, n = generating[: self.most], self.most
        left = self.most - n
        rows = [(seq, seq.known - seq.computed, self._estimate(seq, hit)) for seq, hit in prompts]
        costs = [_cost(rest, rest, spared) for _, rest, spared in rows]
        if sum([min(cost, self.most) for cost in costs]) <= left and max(costs, default=0) <= self.most:
            return {seq: (rest, spared) for seq, rest, spared in rows}, generating
        if self.policy.context_chunking_policy == "FIRST_COME_FIRST_SERVED":
            return self._in_order(rows, costs, left), generating
        return self._in_rounds(rows, left), generating

    def waits(self, waited: int, generating: int, chunks: Chunks) -> bool:
        """Whether prompts are held back while the batch is small."""
        policy = self.policy
        if not policy.batch_wait_timeout_iters and not policy.batch_wait_max_tokens_ratio:
            return False
        n = generating
        for seq, (new, spared) in chunks.items():
            rest = seq.known - seq.computed
            n += max(1, rest - spared) if 0 < spared and spared + new >= rest else new
        return waited < policy.batch_wait_timeout_iters and n < policy.batch_wait_max_tokens_ratio * self.most

    def _estimate(self, seq: Sequence, hit: Hit) -> int:
        """Tokens of a prompt that need not be computed."""
        return self.size * min(hit.blocks, (seq.known - 1) // self.size)

    def _whole_prompts(
        self, generating: list[Sequence] | None, prompts: Prompts
    ) -> tuple[Chunks, list[Sequence] | None]:
        """Nobody passes a prompt that does not fit; where they are mixed, nor do those behind it that generate."""
        most, decoding = self.most, self.batch.decodes.members
        spent, mixed = 0, generating == []
        if not mixed:
            if generating is not None and len(generating) > most:
                return {}, generating[:most]
            spent = len(decoding)
        found: list[Sequence] = []
        chunks: Chunks = {}
        for seq, hit in prompts:
            if seq.state == LEAVING:
                continue
            if seq.state == DECODING:
                if spent + 1 > most:
                    break
                found.append(seq)
                spent += 1
                continue
            rest, spared = seq.known - seq.computed, self._estimate(seq, hit)
            cost = max(1, _cost(seq.known, rest, spared))
            if spent + cost > most:
                break
            chunks[seq] = rest, spared
            spent += cost
        return chunks, found if mixed else None

    def _in_order(self, rows: list[tuple[Sequence, int, int]], costs: list[int], left: int) -> Chunks:
        unit = self.policy.chunk_unit_size or self.size
        chunks: Chunks = {}
        for (seq, rest, spared), cost in zip(rows, costs, strict=True):
            new = rest if cost <= left else left // unit * unit
            if new:
                left -= _cost(new, rest, spared)
                chunks[seq] = new, spared
        return chunks

    def _in_rounds(self, rows: list[tuple[Sequence, int, int]], left: int) -> Chunks:
        """A unit more for each in each round, as long as there is something left."""
        unit = self.policy.chunk_unit_size or self.size
        got, given, any_given = [0] * len(rows), 0, True
        while given < left and any_given:
            any_given = False
            for i, (_, rest, spared) in enumerate(rows):
                new = min(rest, got[i] + unit)
                if new == got[i] or new > self.most:
                    continue
                more = _cost(new, rest, spared) - (_cost(got[i], rest, spared) if got[i] else 0)
                if given + more <= left:
                    given += more
                    got[i] = new
                    any_given = True
        return {seq: (new, spared) for (seq, _, spared), new in zip(rows, got, strict=True) if new}


def growth(batch: Batch, generating: list[Sequence] | None) -> int:
    """New blocks of those who generate in this step (None: all that decode)."""
    if generating is None:
        return batch.decodes.by_position[batch.decodes.tick % batch.kv.size]
    return sum([batch.computed(seq) % batch.kv.size == 0 for seq in generating])


def standstill(policy: TRTLLM, batch: Batch) -> str:
    """What keeps those from being served who are left when nothing else comes. Each by itself fits the memory."""
    most, unit = policy.max_num_tokens, policy.chunk_unit_size or batch.kv.size
    if not policy.enable_chunked_prefill:
        return f"with its earlier outputs its prompt, or one before it, is over max_num_tokens ({most})"
    if unit > most:
        return f"a chunk of {unit} tokens (chunk_unit_size) does not fit max_num_tokens ({most})"
    return "the first in the active list lacks KV blocks that prompts in the middle hold, which may not pass it"


def _cost(new: int, rest: int, spared: int) -> int:
    """Tokens that computing `new` of the `rest` of a prompt counts for, if `spared` are thought to be cached."""
    return new if not spared or spared + new < rest else max(0, rest - spared)
