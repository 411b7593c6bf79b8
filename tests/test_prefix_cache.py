"""The prefix cache, kept in runs of blocks, against one kept block by block as vLLM does."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from sim.kv import NO_HIT, Hit
from sim.prefix import PrefixCache
from sim.request import Request, Sequence
from tests import random_cases

Key = tuple[Any, ...]


class Naive:
    """Blocks 0, 1, ... by themselves: a free list, of each block the key of its content, and who uses it.

    Taken from the head of the free list; a cached block loses its key then. Freed last block first: a cached one, used
    by nobody, goes to the tail, any other to the head. A key is its tokens and the key of the block before.
    """

    def __init__(self, total: int, size: int) -> None:
        self.size = size
        self.free = deque(range(total))
        self.key: dict[int, Key] = {}
        self.cached: dict[Key, list[int]] = {}  # those cached first stand first
        self.users: dict[int, int] = {}
        self.unnamed: list[int] = []  # taken, whoever has them, and not cached
        self.held: dict[Sequence, list[int]] = {}  # cached blocks from the first on

    def take(self, n: int) -> None:
        for _ in range(n):
            block = self.free.popleft()
            if block in self.key:
                self.cached[self.key.pop(block)].remove(block)
            self.unnamed.append(block)

    def keys(self, seq: Sequence, blocks: int) -> list[Key]:
        """The keys of the first full blocks of seq."""
        request, tokens = seq.request, []
        for segment, n in request.prefix:
            tokens += [(segment, i) for i in range(n)]
        tokens += [("own:" + request.id, i) for i in range(request.prompt_tokens - len(tokens))]
        tokens += [("out:" + request.id, i) for i in range(seq.outputs)]
        keys: list[Key] = []
        for i in range(blocks):
            before = keys[-1] if keys else ()
            keys.append((hash(before), *tokens[i * self.size : (i + 1) * self.size]))
        return keys

    def hits(self, seq: Sequence) -> list[int]:
        found = []
        for key in self.keys(seq, (seq.known - 1) // self.size):
            if not self.cached.get(key):
                break
            found.append(self.cached[key][0])
        return found

    def use(self, seq: Sequence) -> None:
        self.held[seq] = blocks = self.hits(seq)
        for block in blocks:
            if not self.users.get(block):
                self.free.remove(block)
            self.users[block] = self.users.get(block, 0) + 1

    def cache(self, seq: Sequence, tokens: int) -> None:
        blocks = self.held.setdefault(seq, [])
        for key in self.keys(seq, tokens // self.size)[len(blocks) :]:
            block = self.unnamed.pop()
            self.key[block], self.users[block] = key, 1
            self.cached.setdefault(key, []).append(block)
            blocks.append(block)

    def release(self, seq: Sequence) -> None:
        blocks = self.held.pop(seq, [])
        for _ in range(seq.blocks - len(blocks)):
            self.free.appendleft(self.unnamed.pop())
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.free.append(block)


class Both(PrefixCache):
    """Does everything twice, and compares after each verb."""

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self.naive = Naive(total, size)
        self.hits = self.evicted = 0

    def agree(self) -> None:
        naive = self.naive
        assert self.free == len(naive.free)
        assert self.uncached == sum(block not in naive.key for block in naive.free)
        assert [block in naive.key for block in naive.free] == sorted(block in naive.key for block in naive.free)

    def take(self, n: int) -> None:
        self.evicted += max(n - self.uncached, 0)
        super().take(n)
        self.naive.take(n)
        self.agree()

    def lookup(self, seq: Sequence) -> Hit:
        hit = super().lookup(seq)
        found = self.naive.hits(seq)
        assert hit.blocks == len(found)
        assert hit.idle == sum(not self.naive.users[block] for block in found)
        self.hits += hit.blocks
        return hit

    def use(self, seq: Sequence, hit: Hit) -> None:
        super().use(seq, hit)
        self.naive.use(seq)
        self.agree()

    def cache(self, seq: Sequence, tokens: int) -> None:
        super().cache(seq, tokens)
        self.naive.cache(seq, tokens)

    def release(self, seq: Sequence, tokens: int = 0) -> None:
        self.naive.release(seq)
        super().release(seq, tokens)
        self.agree()


class Engine:
    """Admits, computes and releases sequences as a batch does, in any order that it is told."""

    def __init__(self, total: int, size: int) -> None:
        self.kv = Both(total, size)
        self.seqs: list[Sequence] = []
        self.running: dict[str, Sequence] = {}
        self.ended: set[str] = set()

    def ask(self, seq: Sequence) -> Hit:
        """What it names becomes visible, then it is looked up; see `Batch.lookup`."""
        for segment, _ in seq.request.prefix:
            kind, _, name = segment.partition(":")
            if kind not in ("own", "out"):
                continue
            other = self.running.get(name)
            if other is None:
                self.kv.reveal_ended(name)
            else:
                self.kv.cache(other, other.computed)
                self.kv.reveal(other)
        return self.kv.lookup(seq)

    def admit(self, seq: Sequence, new: int) -> None:
        if seq.request.id in self.running or seq.request.id in self.ended:
            return
        kv, size = self.kv, self.kv.size
        hit = self.ask(seq)
        held = hit.blocks * size
        new = min(max(new, 1), seq.known - held)
        blocks = -(-(held + new) // size)
        if blocks - hit.blocks + hit.idle > kv.free:
            return
        if hit.blocks:
            kv.use(seq, hit)
        kv.take(blocks - hit.blocks)
        seq.blocks, seq.computed = blocks, held + new
        self.running[seq.request.id] = seq
        kv.cache(seq, seq.computed)

    def compute(self, seq: Sequence, new: int, quietly: bool) -> None:
        """Some more tokens; what is decoded need not be made visible at once."""
        most = seq.request.prompt_tokens + seq.outputs - 1
        new = min(max(new, 1), most - seq.computed)
        blocks = -(-(seq.computed + new) // self.kv.size)
        if seq.request.id not in self.running or new <= 0 or blocks - seq.blocks > self.kv.free:
            return
        self.kv.take(blocks - seq.blocks)
        seq.blocks, seq.computed = blocks, seq.computed + new
        seq.known = max(seq.known, seq.computed + 1)
        if not quietly or seq.computed <= seq.request.prompt_tokens:
            self.kv.cache(seq, seq.computed)

    def leave(self, seq: Sequence, ends: bool) -> None:
        """It ends, or is preempted and may come again."""
        if self.running.pop(seq.request.id, None) is None:
            return
        self.kv.cache(seq, seq.computed)
        if ends:
            self.ended.add(seq.request.id)
        else:
            self.kv.reveal(seq)
        self.kv.release(seq)
        seq.computed = 0


lengths = st.integers(1, 24)
prompts = st.one_of(
    st.tuples(st.just("new"), st.integers(0, 2), lengths, lengths, lengths),  # shares the head of a system prompt
    st.tuples(st.just("turn"), st.integers(0, 5), lengths, lengths, lengths),  # goes on from one before
    st.tuples(st.just("same"), st.integers(0, 5), lengths, lengths, lengths),  # its whole prompt again, or a part
    st.tuples(st.just("alone"), st.just(0), lengths, lengths, lengths),
)
verbs = st.tuples(
    st.sampled_from(["admit", "admit", "compute", "quietly", "end", "preempt"]), st.integers(0, 30), lengths
)


def request_of(index: int, made: list[Sequence], what: tuple[str, int, int, int, int]) -> Sequence:
    kind, which, shared, own, outputs = what
    prefix: list[tuple[str, int]] = []
    if kind == "new":
        prefix = [(f"sys{which}", shared)]
    elif kind in ("turn", "same") and made:
        other = made[-1 - which % len(made)]
        request = other.request
        prefix = list(request.prefix)
        rest = request.prompt_tokens - sum(n for _, n in prefix)
        if kind == "turn":
            prefix += [("own:" + request.id, rest)] * (rest > 0) + [("out:" + request.id, min(shared, other.outputs))]
        elif rest:
            prefix.append(("own:" + request.id, min(shared, rest)))
    prompt = sum(n for _, n in prefix) + own * (kind != "same" or not prefix)
    request = Request(index, f"r{index}", 0.0, prompt, outputs, outputs, 0, tuple(prefix))
    return Sequence(request, 0.0, outputs, outputs, False)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 6),
    st.integers(2, 40),
    st.lists(st.one_of(prompts, verbs, verbs, verbs), min_size=5, max_size=120),
)
def test_runs_of_blocks_are_blocks(size: int, total: int, script: list[tuple[Any, ...]]) -> None:
    engine = Engine(total, size)
    seqs: list[Sequence] = []
    for word in script:
        if len(word) == 5:
            seqs.append(request_of(len(seqs), seqs, word))  # type: ignore[arg-type]
            engine.admit(seqs[-1], word[3])
        elif seqs:
            verb, which, n = word
            seq = seqs[-1 - which % len(seqs)]
            if verb == "admit":
                engine.admit(seq, n)
            elif verb in ("compute", "quietly"):
                engine.compute(seq, n, verb == "quietly")
            else:
                engine.leave(seq, verb == "end")
    for seq in seqs:
        engine.leave(seq, ends=True)
    assert engine.kv.free == engine.kv.total == len(engine.kv.naive.free)


def simulated(data: dict[str, Any], asked: list[Request]) -> list[Both]:
    """The caches of a run in which each verb is compared."""
    made: list[Both] = []

    class Kept(Both):
        def __init__(self, total: int, size: int) -> None:
            super().__init__(total, size)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.policies.vllm.PrefixCache", Kept)
        random_cases.run(data, asked)
    return made


def shared_case(seed: int) -> tuple[dict[str, Any], list[Request]]:
    """A random case with prefix caching and few blocks."""
    rng = random.Random(seed)
    data, _ = random_cases.case(rng)
    while data["policy"]["name"] != "vllm":
        data, _ = random_cases.case(rng)
    data["workload"] = dict(random_cases.OWN)
    engine = data["engine"]
    engine["enable_prefix_caching"] = True
    longest, size = min(engine["max_model_len"], 600), engine["block_size"]
    engine["max_model_len"] = longest
    engine["num_gpu_blocks_override"] = min(
        engine["num_gpu_blocks_override"], -(-longest // size) + rng.choice([2, 60])
    )
    return data, random_cases.requests(rng, longest, shared=True)


@settings(
    max_examples=60, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.integers(0, 2**32 - 1))
def test_the_cache_of_a_simulation(seed: int) -> None:
    data, asked = shared_case(seed)
    note(f"{data}")
    simulated(data, asked)


def test_caches_are_hit_and_evicted() -> None:
    """Or the tests above would compare nothing with nothing."""
    hits = evicted = 0
    for seed in range(20):
        for cache in simulated(*shared_case(seed)):
            hits, evicted = hits + cache.hits, evicted + cache.evicted
    assert hits > 1000 and evicted > 1000


# -- single rules


def sequence(name: str, prompt: int, outputs: int = 5, *prefix: tuple[str, int]) -> Sequence:
    return Sequence(Request(0, name, 0.0, prompt, outputs, outputs, 0, prefix), 0.0, outputs, outputs, False)


def test_a_whole_prompt_is_never_hit_whole() -> None:
    """The block of the last known token is computed again, also where the prompt ends with a block."""
    engine = Engine(20, 4)
    engine.admit(sequence("a", 8, 5, ("sys", 8)), 8)
    assert engine.ask(sequence("b", 8, 5, ("sys", 8))).blocks == 1
    assert engine.ask(sequence("c", 9, 5, ("sys", 8))).blocks == 2


def test_equal_tokens_after_other_tokens_are_no_hit() -> None:
    engine = Engine(20, 4)
    engine.admit(sequence("a", 16, 5, ("x", 8), ("sys", 8)), 16)
    assert engine.ask(sequence("b", 16, 5, ("y", 8), ("sys", 8))) == NO_HIT
    assert engine.ask(sequence("c", 17, 5, ("x", 8), ("sys", 8))).blocks == 4
    assert engine.ask(sequence("d", 17, 5, ("x", 6), ("sys", 8))).blocks == 1


def test_least_recently_used_goes_first_and_ends_of_prompts_before_beginnings() -> None:
    engine = Engine(8, 4)
    first, second = sequence("a", 16, 1, ("x", 16)), sequence("b", 16, 1, ("y", 16))
    for seq in (first, second):
        engine.admit(seq, 16)
    engine.leave(second, ends=True)
    engine.leave(first, ends=True)
    engine.admit(sequence("c", 8, 1), 8)  # takes two blocks, from the end of the one that left first
    found = [engine.ask(sequence("d", 17, 1, (name, 16))).blocks for name in ("x", "y")]
    assert found == [4, 2]


def test_who_names_an_ended_one_hits_its_outputs() -> None:
    engine = Engine(20, 4)
    private = sequence("a", 6, 7)
    engine.admit(private, 6)
    engine.compute(private, 6, quietly=True)
    engine.leave(private, ends=True)
    assert engine.ask(sequence("b", 20, 1, ("own:a", 6), ("out:a", 7))).blocks == 3  # the last token was not computed
    assert engine.ask(sequence("c", 20, 1, ("own:a", 6))).blocks == 1
