"""The context manager of a reentrant pool: a block inside a block of the same flow uses the same connection."""

from __future__ import annotations

import sys
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver import savepoint as savepoints
from otel_pgpool.errors import PoolError
from otel_pgpool.pool.context import CheckoutContext, ConnectionT_co, LongCheckoutContext, in_use
from otel_pgpool.runtime.flow import Flow, current_flow
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

OPEN_INSIDE = "a block inside this one has not ended, so this one is rolled back: blocks must end in reverse order"
ENDED_INSIDE = "a block inside another one has ended the transaction: only the outermost block commits and rolls back"
ENDED_AROUND = "the block around this one has ended before it: blocks must end in reverse order"


_entered: ContextVar[tuple[weakref.ref[Any], ...]] = ContextVar("otel_pgpool_blocks", default=())
"""The outermost blocks that were entered in the present context, or in one from which it was copied.

A flow alone does not prove that a block is inside another: frameworks enter a block in a thread of a pool, and let the
same thread serve another request before the block has ended. A context alone does not either, because it is copied into
other threads and tasks.
"""


class ReentrantContext(LongCheckoutContext[ConnectionT_co]):
    """A block of a reentrant pool: the outermost one of its flow, which is a checkout, or one inside it.

    An outermost block refers weakly to those inside, and the pool refers weakly to it, so that a connection is
    reclaimed as ever if the program drops the contexts.
    """

    __slots__ = ("__weakref__", "flow", "inside", "is_ended", "is_long", "number", "outermost", "savepoint")

    is_long: bool
    """Whether its hold has a threshold of its own, which counts if the block is the outermost."""
    outermost: ReentrantContext[ConnectionT_co] | None
    """The outermost block, if this one is inside it."""
    savepoint: str | None
    """The savepoint of a block inside, if one was needed."""
    inside: list[weakref.ref[ReentrantContext[ConnectionT_co]]]
    """The blocks inside that have not ended, from the outside to the inside."""
    number: int
    """Number of the blocks that have begun inside."""
    flow: Flow
    """The flow that has entered an outermost block."""
    is_ended: bool
    """Whether the program has ended the transaction inside a block inside."""

    def __init__(self) -> None:
        self.is_long = False
        self.outermost = self.savepoint = None

    @classmethod
    def expecting(cls, hold: object) -> Self:
        """Return a context whose hold may last ``hold`` seconds if its block is the outermost.

        Raises:
            ValueError: ``hold`` is neither a number above 0 nor None.
        """
        context = super().expecting(hold)
        context.is_long = True
        return context

    def __enter__(self) -> ConnectionT_co:
        if self.checkout is not None:
            raise in_use(self.parts)
        if not is_here:
            renew()
        flow = current_flow()
        entered = [block for ref in _entered.get() if (block := ref()) is not None and block.is_held]
        for outermost in reversed(entered):
            if outermost.parts is self.parts and outermost.flow == flow:
                return self._enter_inside(outermost)
        self.inside, self.number, self.is_ended, self.flow = [], 0, False, flow
        _entered.set((*map(weakref.ref, entered), weakref.ref(self)))
        return super().__enter__() if self.is_long else CheckoutContext.__enter__(self)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.outermost is not None:
                self._exit_inside(self.outermost, exc)
            elif exc is None and self.conn is not None and (problem := self._problem()):
                error = self._error(problem)
                super().__exit__(type(error), error, None)
                raise error  # noqa: TRY301 - an interrupt may hit at any line
            else:
                super().__exit__(exc_type, exc, traceback)
        except BaseException:
            if self.outermost is None and self.conn is not None:
                super().__exit__(*sys.exc_info())
            raise
        finally:
            if self.outermost is not None:
                self.outermost = self.savepoint = self.conn = self.checkout = None

    @property
    def is_held(self) -> bool:
        """Whether this block has a connection. That of a parent process does not count."""
        return self.conn is not None and self.checkout is not None and self.parts.core.holds(self.checkout)

    def _problem(self) -> str:
        """Return why an outermost block must not commit, or nothing."""
        if any(block() is not None for block in self.inside):
            return OPEN_INSIDE
        return ENDED_INSIDE if self.is_ended else ""

    def _error(self, text: str) -> PoolError:
        return PoolError(f"pool {self.parts.core.name!r}: {text}")

    # Blocks inside

    def _enter_inside(self, outermost: ReentrantContext[ConnectionT_co]) -> ConnectionT_co:
        conn, checkout = outermost.conn, outermost.checkout
        if conn is None or checkout is None:
            raise self._error(ENDED_AROUND)
        outermost.number += 1
        savepoint = savepoints.begin(conn, f"otel_pgpool_{outermost.number}")
        self.conn, self.checkout, self.savepoint, self.outermost = conn, checkout, savepoint, outermost
        outermost.inside.append(weakref.ref(self))
        checkout.blocks_inside += 1
        checkout.is_remarkable = True
        return conn  # type: ignore[return-value]  # made by `connection_factory`

    def _exit_inside(self, outermost: ReentrantContext[ConnectionT_co], exc: BaseException | None) -> None:
        conn, checkout, savepoint = self.conn, self.checkout, self.savepoint
        blocks = [block() for block in outermost.inside]
        if conn is None or checkout is not outermost.checkout or self not in blocks:
            if exc is None:
                raise self._error(ENDED_AROUND)
            return
        place = blocks.index(self)
        if isinstance(exc, GeneratorExit):  # the generator was closed, in whatever state the transaction is: no failure
            del outermost.inside[place]
            return
        del outermost.inside[place:]
        if not outermost.is_held:
            return
        is_kept = exc is None and not any(blocks[place + 1 :])
        try:
            is_whole = (savepoints.keep if is_kept else savepoints.undo)(conn, savepoint)
        except BaseException as failure:
            if not isinstance(failure, Exception):
                savepoints.undo(conn, savepoint)
            raise
        outermost.is_ended |= not is_whole
        if exc is None and not (is_whole and is_kept):
            raise self._error(OPEN_INSIDE if is_whole else ENDED_INSIDE)
