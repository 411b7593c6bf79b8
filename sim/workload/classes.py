"""What each request is but for its arrival: its class, lengths, limits and shared prefix.

Every class draws for every index of the workload, from streams of its own: weights change which class a request has,
not what a class draws, and nothing that serves the requests changes either.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import registry

if TYPE_CHECKING:
    from .source import Setup

BLOCK = 4096  # numbers drawn at once; their values do not depend on it

Prefix = tuple[tuple[str, int], ...]
Facts = tuple[int, int, int | None, int, Prefix, str]  # prompt, output, max_tokens, priority, prefix, class


class _Memo(dict[int, Prefix]):
    """Values by number, each made once: requests of one group share one object."""

    def __init__(self, make: Callable[[int], Prefix]) -> None:
        self._make = make

    def __missing__(self, number: int) -> Prefix:
        value = self[number] = self._make(number)
        return value


class ClassDraws:
    """The requests of one class."""

    def __init__(self, setup: "Setup", label: str) -> None:
        self.label, self.kind = label, setup.classes[label]
        self._stream, self._resolve, self._by_length = setup.stream, setup.resolve, setup.ignore_eos
        self._groups = self._drawn_groups()
        self._shared = _Memo(lambda group: self._prefix(group, self.kind.prefix.tokens))  # type: ignore[union-attr]
        self._asked = 0  # prompts so far, where each is asked several times

    def blocks(self) -> Iterator[Iterable[Facts]]:
        """Without end, one for every index; of a class that asks each prompt several times, for its own requests."""
        if self.kind.samples == 1:
            for prompts, outputs in self._lengths():
                yield self.rows(prompts, outputs)
        prompt_blocks, output_blocks = self._drawn("prompt_tokens"), self._drawn("output_tokens")
        prompts_it = chain.from_iterable(prompt_blocks)
        left: Iterator[tuple[int, Prefix]] = chain.from_iterable(
            repeat((tokens, self._whole_prompt(tokens)), self.kind.samples) for tokens in prompts_it
        )
        for outputs in output_blocks:
            asked = list(islice(left, BLOCK))
            yield self._limited([tokens for tokens, _ in asked], outputs, [prefix for _, prefix in asked])

    def rows(self, prompts: list[int], outputs: list[int]) -> Iterable[Facts]:
        """The next requests, which have these lengths."""
        prefixes: Iterable[Prefix] = repeat(())
        prefix = self.kind.prefix
        if prefix is not None:
            whole, most = self._shared, prefix.tokens
            prefixes = [
                whole[group] if tokens >= most else self._prefix(group, tokens)
                for group, tokens in zip(self._next_groups(len(prompts)), prompts, strict=True)
            ]
        return self._limited(prompts, outputs, prefixes)

    def _limited(self, prompts: list[int], outputs: list[int], prefixes: Iterable[Prefix]) -> Iterable[Facts]:
        kind = self.kind
        limits: Iterable[int | None] = repeat(kind.max_tokens)
        if kind.max_tokens is not None:  # an output longer than that ends there
            outputs = [min(tokens, kind.max_tokens) for tokens in outputs]
        if self._by_length:
            limits = outputs
        return zip(prompts, outputs, limits, repeat(kind.priority), prefixes, repeat(self.label), strict=False)

    def _prefix(self, group: int, tokens: int) -> Prefix:
        return ((f"{self.label}/prefix-{group}", tokens),) if tokens else ()

    def _whole_prompt(self, tokens: int) -> Prefix:
        """The name of the next prompt, all of which is shared by those who ask it."""
        number = self._asked
        self._asked += 1
        prefix = self.kind.prefix
        shared = min(prefix.tokens, tokens) if prefix is not None else 0
        rest = ((f"{self.label}/prompt-{number}", tokens - shared),) if tokens > shared else ()
        return (*self._prefix(self._next_groups(1)[0], shared), *rest) if shared else rest

    def _lengths(self) -> Iterator[tuple[list[int], list[int]]]:
        if self.kind.lengths is None:
            yield from zip(self._drawn("prompt_tokens"), self._drawn("output_tokens"), strict=False)
        pairs: Any = registry.build("length_pairs", self.kind.lengths)  # type: ignore[arg-type]
        rng = self._stream(f"lengths/{self.label}")
        while True:
            prompts, outputs = pairs.draw(rng, BLOCK, self._resolve)
            yield prompts.tolist(), outputs.tolist()

    def _drawn(self, key: str) -> Iterator[list[int]]:
        lengths: Any = registry.build("lengths", getattr(self.kind, key))
        rng = self._stream(f"{key}/{self.label}")
        while True:
            yield lengths.draw(rng, BLOCK).tolist()

    def _next_groups(self, count: int) -> list[int]:
        return list(islice(self._groups, count))

    def _drawn_groups(self) -> Iterator[int]:
        """The group of each prompt; group g (from 0) is as popular as (g + 1)^-exponent, or as any other."""
        prefix = self.kind.prefix
        assert prefix is not None
        weights = np.arange(1, prefix.groups + 1) ** -(prefix.exponent if prefix.popularity == "zipf" else 0.0)
        edges = (np.cumsum(weights) / weights.sum())[:-1]
        rng = self._stream(f"prefix/{self.label}")
        while True:
            yield from np.searchsorted(edges, rng.random(BLOCK), side="right").tolist()
