"""What sequences hold, in runs of tokens: a token is (segment, index), so whole runs are compared at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request

Runs = tuple[tuple[str, int, int], ...]  # (segment, index of the first token, tokens)


def content(request: Request, outputs: int) -> Runs:
    """All that a request will ever hold: its prompt, then `outputs` tokens."""
    own = request.prompt_tokens
    runs = []
    for segment, n in request.prefix:
        if n:
            runs.append((segment, 0, n))
            own -= n
    if own:
        runs.append(("own:" + request.id, 0, own))
    if outputs:
        runs.append(("out:" + request.id, 0, outputs))
    return tuple(runs)


def cut(runs: Runs, lo: int, hi: int) -> Runs:
    """Tokens lo ... hi - 1 of runs."""
    found = []
    for segment, first, n in runs:
        if hi <= 0:
            break
        if lo < n:
            begin = lo if lo > 0 else 0
            found.append((segment, first + begin, (n if n < hi else hi) - begin))
        lo -= n
        hi -= n
    return tuple(found)


def common(left: Runs, right: Runs) -> int:
    """Tokens with which both begin."""
    total = i = j = 0
    a = b = 0  # tokens of the present runs that are compared already
    while i < len(left) and j < len(right):
        segment, first, n = left[i]
        other, second, m = right[j]
        if segment != other or first + a != second + b:
            break
        step = min(n - a, m - b)
        total += step
        a += step
        b += step
        if a == n:
            i, a = i + 1, 0
        if b == m:
            j, b = j + 1, 0
    return total
