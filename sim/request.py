"""What is asked (Request) and how far it has come in one engine (Sequence)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .content import content

if TYPE_CHECKING:
    from .content import Runs
    from .prefix import Piece

# States of a sequence. Plain integers: they are compared several times a decision.
WAITING = 0  # in the queue: new, or preempted
PARTIAL = 1  # running, its prompt (or recomputation) not yet computed whole
DECODING = 2  # running, gives a token in every step that takes it
LEAVING = 3  # running, its last token is under way
DONE = 4

# Statuses with which a request ends. Every request ends once, with one of them.
FINISHED = "finished"
REJECTED = "rejected"
FAILED = "failed"
UNFINISHED = "unfinished"


@dataclass(slots=True)
class Request:
    """One request as the client sent it; nobody writes into it.

    Times in seconds, lengths in tokens. `output_tokens` is known to nobody but the engine that ends it; `max_tokens`
    (None: whatever `max_model_len` leaves) is what policies see, and `ignore_eos`: that it ends by length. `prefix`
    names the tokens that a prompt shares with others: (segment, n) pairs, each the first n tokens of that segment; the
    rest of the prompt is the request's own segment "own:<id>", its outputs are "out:<id>".
    """

    index: int
    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    priority: int = 0
    prefix: tuple[tuple[str, int], ...] = ()
    cls: str = "default"
    ignore_eos: bool = False


class Terms(NamedTuple):
    """On what terms an engine takes a request; tokens."""

    limit: int  # it gives at most so many
    prompt: int | None = None  # it computes so many as its prompt; None: all
    gives: int | None = None  # the engine ends it after so many; None: where it ends by itself, or at its limit
    later: int = 0  # and so many more if it is queued anew, in goes of at most `limit`


class Sequence:
    """Progress of a request in one lane.

    While it decodes, one number says all: `born` = tick of the decode set - tokens computed; it stays the same as long
    as every tick takes it. Otherwise `computed` holds the tokens computed. `known` = prompt + outputs received, up to
    date only while it is not decoding.

    `spans` are flat triples: the step whose prompt computation gave a token (None where the span goes on after a tick
    that passed it over), its first tick, and the tick after its last; each tick of a span gave one token.
    `pauses` are flat pairs of times in seconds: preempted at, taken up again at.

    Where steps are decided ahead, one that `stops` (by a token that nobody foresees) is still in the step after its
    last token: that step's result for it is thrown away.
    """

    __slots__ = (
        "blocks", "born", "cached_blocks", "computed", "delivered_step", "engine", "first_scheduled_s", "first_step",
        "grow_at", "grows", "held", "hit_tokens", "joined", "known", "last_step", "last_tick", "later", "limit", "mark",
        "order", "outputs", "path", "pauses", "pieces", "preemptions", "prompt", "reach_s", "reason", "request", "runs",
        "skipped", "spans", "state", "status", "stops", "taken", "visible",
    )  # fmt: skip

    def __init__(self, request: Request, reach_s: float, outputs: int, limit: int, stops: bool) -> None:
        self.request = request
        self.reach_s = reach_s  # when the engine sees it
        self.outputs = outputs  # tokens that it will give
        self.limit = limit  # tokens that it may give at most, which is all that a policy knows
        self.later: tuple[int, int] | None = None  # what it gives, and may give, when it has been queued anew
        self.stops = stops
        self.known = self.prompt = request.prompt_tokens  # its prompt as the engine computes it
        self.computed = self.born = self.blocks = self.order = self.preemptions = 0
        self.grows = 1  # 0: it holds all blocks that it may ever need
        self.state = WAITING
        self.status = UNFINISHED
        self.reason: str | None = None
        self.engine = -1
        self.taken = self.skipped = self.joined = -2  # last step that took it, passed it over, made its prompt whole
        self.last_tick = -1  # of the decode set: its last
        self.first_step: int | None = None
        self.first_scheduled_s = 0.0
        self.last_step: int | None = None  # the step that gave its last token
        self.delivered_step: int | None = None  # the step at whose end all is delivered, where it is not streamed
        self.spans: list[Any] = []
        self.pauses: list[float] | None = None
        self.hit_tokens = 0
        self.mark: Any = None  # the policy's own, as long as it is in the lane
        # The prefix cache's own: what it holds there, and where its tokens lie in the tree.
        self.held: Any = None
        self.runs: Runs | None = None
        self.path: list[tuple[int, Any]] | None = None
        self.pieces: list[Piece] | None = None  # None: nothing of it is in the tree yet
        self.cached_blocks = 0
        self.visible = 0  # tokens that others could hit, were they looked up
        self.grow_at: tuple[Any, ...] | None = None

    def go_on(self) -> None:
        """It has left, and comes back: what it has given is prompt from now on."""
        assert self.later is not None
        rest, allowed = self.later
        self.prompt = self.known = self.prompt + self.outputs
        self.limit = min(self.limit, allowed)
        self.outputs = min(self.limit, rest)
        self.later = (rest - self.outputs, allowed - self.limit) if rest > self.outputs else None
        self.stops = self.outputs < self.limit
        self.computed, self.state, self.last_step = 0, WAITING, None
        if self.runs is not None:
            self.runs = content(self.request, self.prompt - self.request.prompt_tokens + self.outputs + 1)
