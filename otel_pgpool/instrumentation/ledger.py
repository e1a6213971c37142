"""The tracker of an instrumented pool: who holds which connection since when, and totals, reported by `Telemetry`."""

from __future__ import annotations

import re
import threading
import weakref
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool.driver.error_text import describe
from otel_pgpool.driver.messages import known
from otel_pgpool.driver.refusal import is_refusal
from otel_pgpool.errors import LONGEST_HOLDERS, PoolTimeout, error_type, timeout_error
from otel_pgpool.instrumentation.connects import Connects
from otel_pgpool.instrumentation.driver import SeenSlot, pid_of
from otel_pgpool.instrumentation.holds import Holds
from otel_pgpool.instrumentation.kind import Levels
from otel_pgpool.instrumentation.turns import Turns
from otel_pgpool.pool import registry
from otel_pgpool.pool.checkout import NEVER, Attempt, Blocker, Loan
from otel_pgpool.pool.utilization import Level, level_name
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import Guard, is_asynchronous
from otel_pgpool.runtime.fork import renewed
from otel_pgpool.runtime.text import LONGEST_NAME, class_of, text_of
from otel_pgpool.stats import LastFigures, PoolStats, leave_figures
from otel_pgpool.telemetry import Telemetry
from otel_pgpool.telemetry.metrics import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.driver.dsn import Target
    from otel_pgpool.instrumentation.connects import Outage
    from otel_pgpool.instrumentation.hook import Hook
    from otel_pgpool.instrumentation.kind import Kind
    from otel_pgpool.observer import Connect
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.checkout import Checkout, Slot


TOTALS = (
    "idle_checkouts",
    "queued_checkouts",
    "new_checkouts",
    "queued",
    "timeouts",
    "errors",
    "retries",
    "long_holds",
    "created",
    "wait_seconds",
    "hold_seconds",
)

AnyLoan = TypeVar("AnyLoan", bound=Loan)


class Loud(Silence):
    """The opposite of a `Silence`: the observer is notified of every checkout."""

    def __init__(self) -> None:
        self._real_instrument = True


LOUD = Loud()

LEDGER = "_otel_pgpool"
"""Name of the attribute with which a pool refers to its ledger, so that both are collected together.

The pool's class has no attribute of that name: since Python 3.12, reading an attribute that both have is slow.
"""


def harmless(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method of the ledger so that its errors are logged and not raised."""

    @wraps(method)
    def guarded(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.lament(error)
            return None

    return guarded


class Ledger(Holds):
    """The tracker of one instrumented pool.

    The ledger refers to the pool weakly, and outlives the pool only until its checkouts have ended. A checkout that
    leaves neither span nor record may be kept as a `QuietHold`, at a third of the cost of a `Loan`, and is turned into
    one as soon as there is something to report.

    There is no lock. Counters are changed by plain ``+=``, within which CPython does not switch threads: it does so at
    calls and backward jumps only. An error in the ledger is logged, at most once a minute, and not raised.
    """

    __slots__ = (  # CPython stores so many attributes outside the object otherwise, which makes access slower
        "__weakref__",
        "_before",
        "_ended",
        "_is_replaced",
        "_kind",
        "_level",
        "_observer",
        "_pool",
        "_retired",
        "_serials",
        "connects",
        "created",
        "discarded",
        "errors",
        "guard",
        "hold_seconds",
        "hook",
        "idle_checkouts",
        "last_figures",
        "long_hold",
        "long_holds",
        "name",
        "new_checkouts",
        "queued",
        "queued_checkouts",
        "retries",
        "silence",
        "target",
        "timeouts",
        "turns",
        "untold",
        "usual",
        "wait_seconds",
        "waiting",
    )

    def __init__(
        self, pool: Any, kind: Kind, name: str, target: Target, hook: Hook, *, before: Ledger | None = None
    ) -> None:
        self.last_figures = LastFigures()
        self.hook = hook
        self._kind = kind
        self._retired = self._ended = False
        self._before: list[Ledger] = []  # ledgers of the pools that this one replaces, which may still be in use
        self._is_replaced = False
        self.target = target
        self.turns = Turns() if hook.settings.wait_timeout is not None and kind.waits(pool) else None
        self.usual: object = None  # the only adapter that may use the fast path, until the ledger ends
        self.long_hold = hook.settings.long_hold
        self.start_afresh()
        if before is not None:
            before.retire()
            self._take_over(before)
            name = before.name
        telemetry = hook.settings.telemetry
        self._observer = Telemetry(
            hook.settings.tracer_provider,
            hook.settings.meter_provider,
            telemetry.spans,
            telemetry.slow,
            tuple(telemetry.histograms),
            stack_skip=telemetry.stack_skip,
        )
        # A pool whose callers wait needs full records: a quiet hold has no wait.
        self.silence = LOUD if self.turns is not None else self._observer.silence or LOUD
        self.name: str = registry.register(self, name)
        self.guard = Guard(self.name)
        self._pool = weakref.ref(pool, self._dropped)
        try:
            self._observer.attached(self)
            setattr(pool, LEDGER, self)
        except BaseException:
            self.retire()
            raise

    def start_afresh(self) -> None:
        """Reset all counts, holds and connections."""
        super().start_afresh()
        self.waiting: dict[Loan, None] = {}
        self.connects = Connects()
        self.untold = self.connects.untold  # an attribute of its own, because every checkout reads it
        self._level = Level(monotonic())
        self._serials = 0
        self.idle_checkouts = self.queued_checkouts = self.new_checkouts = 0
        self.queued = self.timeouts = self.errors = self.retries = self.long_holds = self.created = 0
        self.wait_seconds = self.hold_seconds = 0.0
        self.discarded: dict[str, int] = defaultdict(int)  # a Counter calls Python code for each new key

    # A checkout

    def ask(self, stack: Stack) -> Loan:
        """Start a checkout."""
        return self.begin(Loan(), stack)

    def begin(self, loan: AnyLoan, stack: Stack) -> AnyLoan:
        """Start a checkout with a record supplied by the caller. Hot path: repeats the lines of `begin`."""
        loan.stack = stack
        loan.thread = thread_cache.here.thread
        loan.path = loan.observed = loan.queued = loan.error_type = None
        loan.block = loan.flagged = False
        loan.retries = 0
        if self.silence._real_instrument is None:
            loan.heard = False
        else:
            loan.heard = True
            try:
                self._observer.started(loan)
            except Exception as error:  # noqa: BLE001 - the application continues without telemetry
                self.guard.lament(error)
        loan.started = monotonic()
        return loan

    def queue(self, loan: Loan) -> None:
        """Mark a checkout as waiting for the present holders."""
        self.queue_since(loan, monotonic())
        self.waiting[loan] = None

    @harmless
    def queue_since(self, loan: Loan, since: float) -> None:
        """Record that a checkout has been queued since then."""
        loan.queued = since
        loan.waits_for = "queued"
        self.queued += 1
        if loan.observed is not None:
            loan.blockers = [Blocker.of(hold, since) for hold in self.holds_now()[:LONGEST_HOLDERS]]

    def lend(self, loan: Loan, conn: Any) -> None:
        """Record that a checkout received ``conn``."""
        try:
            slot = self.slots.get(id(conn)) or self.enter(conn)
            before: Any = slot.checkout
            if before is not None:  # returned by a method that is not wrapped, or checked out again by the same key
                self.give_back(before)
            loan.slot = slot
            loan.acquired = now = monotonic()
            loan.lent = True
            slot.checkout = loan
            self.wait_seconds += now - loan.started
            if loan.queued is None and not self.untold:
                loan.path = "idle"
                self.idle_checkouts += 1
            else:
                self._find_path(loan)
            if loan.heard:  # before the hold is added, so that the watching thread cannot report it first
                try:
                    self._observer.acquired(loan)
                except Exception as error:  # noqa: BLE001 - the application continues without telemetry
                    self.guard.lament(error)
            self.holds[loan] = None
            if self.hook.parked and not self._ended:
                self.hook.wake()
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.lament(error)
        if self._ended:  # during this call
            self.give_back(loan)

    def pass_on(self, loan: Loan, given: Any) -> None:
        """Record a checkout that received something other than a pool's connection; it ends now, without a return."""
        self.lend(loan, given)
        self.give_back(loan)
        self.slots.pop(id(given), None)

    def _find_path(self, loan: Loan) -> None:
        """Set the path of a checkout that waited, or during which a connection was opened."""
        self.waiting.pop(loan, None)
        if self.tell_connects(loan):
            loan.path = "new"
            self.new_checkouts += 1
        elif loan.queued is not None:
            loan.path = "queued"
            self.queued_checkouts += 1
        else:
            loan.path = "idle"
            self.idle_checkouts += 1

    @harmless
    def refuse(self, loan: Loan, error: BaseException, refusal: str | None = None) -> None:
        """Record that a checkout received no connection.

        Args:
            loan: the checkout.
            error: the error that the caller gets.
            refusal: ``error.type``: ``timeout`` or ``closed``; None for the SQLSTATE or the name of the error's class.
        """
        loan.released = now = monotonic()
        self.waiting.pop(loan, None)
        self.wait_seconds += max(0.0, now - loan.started)
        if self.untold and self.tell_connects(loan):
            loan.waits_for = "new"
        loan.fail(
            refusal or error_type(error), describe(self.target, error) or (_words_of_a_pool(error) if refusal else "")
        )
        if refusal == "timeout":
            loan.outcome = "timeout"
            self.timeouts += 1
            error = (
                self._diagnose(loan, error, now) if self._observer.tells_timeouts() else PoolTimeout(loan.error_message)
            )
        else:
            loan.outcome = "error"
            self.errors += 1
        self.guard.tell(self._observer.failed, loan, error)

    def _diagnose(self, loan: Loan, error: BaseException, now: float) -> PoolTimeout:
        holds = self.holds_now()
        return timeout_error(
            loan.error_message or class_of(error),
            self.stats(),
            waited=now - loan.started,
            retries=loan.retries,
            holders=[hold.holder(now) for hold in holds[:LONGEST_HOLDERS]],
            own_holds=sum(hold.thread is loan.thread for hold in holds),
        )

    def give_back(
        self, loan: Loan, outcome: str = "released", error: BaseException | None = None, at: float | None = None
    ) -> None:
        """Record the end of a hold. A second call does nothing.

        Args:
            loan: the checkout.
            outcome: how the hold ended, as in telemetry.
            error: an error of the pool's own work on the connection, such as its rollback.
            at: when the hold ended, if not now.
        """
        now = monotonic() if at is None else at
        try:
            del loan.lent
        except AttributeError:
            return
        try:
            self._end_hold(loan, now, outcome, error)
        except BaseException as raised:
            if is_asynchronous(raised):
                self._end_hold(loan, now, outcome, error)  # completes what the exception cut short
                raise
            self.guard.lament(raised)  # type: ignore[arg-type]  # an ``Exception``

    def _end_hold(self, loan: Loan, now: float, outcome: str, error: BaseException | None) -> None:
        """End a hold. Each step may be repeated after an interrupt."""
        slot = loan.slot
        following = slot.checkout
        if following is loan:
            slot.checkout = None
        elif following is not None:  # checked out again before this return was complete
            now = min(now, following.acquired)
        if loan in self.holds:
            del self.holds[loan]
            held = now - loan.acquired
            self.hold_seconds += held
            if held >= self.long_hold and not loan.flagged:
                self._flag(loan, now)
        loan.released = now
        loan.outcome = outcome
        if error is not None:
            loan.fail(error_type(error), describe(self.target, error))
        if hasattr(loan, "ended"):
            return
        if outcome == "reclaimed":
            self._observer.reclaimed(loan)
        elif loan.heard or loan.flagged or error is not None:
            self._observer.released(loan)
        loan.ended = True

    @harmless
    def lose(self, slot: Slot) -> None:
        """Reclaim a connection that was collected without being returned, to which the pool had no strong reference."""
        loan: Any = slot.checkout
        if loan is not None and hasattr(loan, "lent"):
            self.give_back(loan, "reclaimed")
            self.discard(slot, "reclaimed", None, loan)

    def speak_up(self, conn: Any) -> Loan | None:
        """Turn the quiet hold of a connection into a checkout, and return that."""
        return self.speak_up_of(self.slot_of(conn))

    # Connections

    @harmless
    def leads_to(self, target: Target) -> None:
        """Set where the connections lead, once that is known."""
        before, self.target = self.target, target
        told = before.address, before.port, before.namespace
        if target.address and (target.address, target.port, target.namespace) != told:
            self.guard.tell(self._observer.attached, self)

    def enter(self, conn: Any) -> Slot:
        """Register a connection, and return its slot."""
        slot = SeenSlot()
        self._serials += 1
        slot.serial = self._serials
        slot.key = id(conn)
        slot.pid = pid_of(conn)
        try:
            slot.ref = weakref.ref(conn, partial(_collected, weakref.ref(self), slot.key))
        except Exception:  # noqa: BLE001 - a connection of the application's factory may not allow weak references
            slot.ref = lambda: None  # type: ignore[assignment]
        self.slots[slot.key] = slot
        return slot

    def slot_of(self, conn: Any) -> Slot:
        """Return the slot of a connection, which is registered if necessary."""
        return self.slots.get(id(conn)) or self.enter(conn)

    @harmless
    def connected(self, began: float, conn: Any) -> None:
        """Note that a connection was opened; the observer is notified later, outside the pool's locks."""
        self.created += 1
        self.enter(conn)
        self.connects.made(began, conn)

    @harmless
    def connect_failed(self, began: float, error: BaseException) -> None:
        """Note that an attempt to connect failed; the observer is notified later."""
        self.connects.failed(began, error, describe(self.target, error))

    @harmless
    def tell_connects(self, loan: Loan | None = None, by: int | None = None) -> bool:
        """Notify the observer of the connects that a thread made; return whether one succeeded.

        Args:
            loan: the checkout for which the connects were made, if any.
            by: identity of the thread; by default the calling thread's.
        """
        made = False
        for _thread, connect, outage in self.connects.take(threading.get_ident() if by is None else by):
            made |= self._tell_connect(replace(connect, asked_by=loan), outage, loan)
        return made

    def _tell_connect(self, connect: Connect, outage: Outage | None, loan: Loan | None) -> bool:
        tell, observer = self.guard.tell, self._observer
        if connect.error is None:
            tell(observer.connected, connect)
            if outage is not None:
                tell(observer.outage_ended, outage.attempts, connect.ended - outage.since)
            return True
        if loan is not None:
            self.retries += 1
            loan.waits_for = "new"
            loan.retried(
                Attempt(connect.ended, class_of(connect.error), 0.0), None
            )  # without the error, which would keep its frames
        tell(observer.connect_failed, connect)
        if is_refusal(connect.error):
            if outage is not None:
                tell(observer.outage_ended, outage.attempts, connect.ended - outage.since)
        elif outage is None and isinstance(connect.error, Exception):
            tell(observer.outage_started, connect)
        return False

    @harmless
    def discard(self, slot: Slot, reason: str, error: BaseException | None = None, loan: Loan | None = None) -> None:
        """Record that a connection was closed."""
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
        self.discarded[reason] += 1
        self.guard.tell(self._observer.discarded, [slot], reason, error, loan)

    # The whole pool

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the ledger as None, so that its pool can still be pickled or copied."""
        return _no_ledger, ()

    @property
    def address(self) -> str:
        """Host of the server, or the folder of its Unix socket."""
        return self.target.address

    @property
    def port(self) -> int | None:
        """Port of the server; None if the hosts of a multi-host DSN have different ports."""
        return self.target.port

    @property
    def namespace(self) -> str:
        """Name of the database."""
        return self.target.namespace

    @property
    def closed(self) -> bool:
        """Whether the pool is not reported any more: it is closed, collected, replaced or no longer instrumented."""
        return self._retired or self._levels().closed

    @property
    def pool(self) -> Any:
        """The pool, or None if it was collected."""
        return self._pool()

    def _levels(self) -> Levels:
        pool = self._pool()
        if pool is None:
            return Levels(0, 0, 0, 0, 0, closed=True)
        try:
            return self._kind.read(pool)
        except Exception as error:  # noqa: BLE001 - a subclass may raise anything
            self.guard.lament(error)
            return Levels(0, 0, len(self.holds), 0, None)

    @renewed
    def stats(self) -> PoolStats:
        """Return the levels, read from the pool, and the totals, which are 0 once another ledger has them."""
        self._settle_accounts()
        accounts = [] if self._is_replaced else [self, *self._before]

        def total(name: str) -> Any:
            return sum(getattr(account, name) for account in accounts)

        levels = self._levels()
        utilization = levels.used / levels.maxconn if levels.maxconn else 0.0
        return PoolStats(
            name=self.name,
            status="closed" if levels.closed else "unreachable" if self.connects.outage else level_name(utilization),
            minconn=levels.minconn,
            maxconn=levels.maxconn,
            size=levels.used + levels.idle,
            used=levels.used,
            idle=levels.idle,
            connecting=len(self.connects.under_way),
            waiting=sum(len(account.waiting) for account in accounts),
            utilization=utilization,
            oldest_hold=self.oldest_hold(),
            checkouts={path: total(f"{path}_checkouts") for path in ("idle", "queued", "new")},
            discarded={} if self._is_replaced else dict(self.discarded),
            **{name: total(name) for name in TOTALS if not name.endswith("_checkouts")},
            maxidle=levels.maxidle,
        )

    # The watching thread

    @harmless
    def look(self, now: float) -> float:
        """Report long holds and the utilization; return when the next call is due, as a reading of the clock."""
        self.speak_up_all(now - self.long_hold)
        going_on = []
        for loan in self.holds.copy():
            if not loan.flagged and loan.acquired + self.long_hold > now:
                going_on.append(loan)
            elif self._is_back(loan):
                self.give_back(loan, at=loan.acquired)  # the time of the return is unknown: count a hold of 0 s
            elif not loan.flagged:
                self._flag(loan, now)
                self.guard.tell(self._observer.held_long, loan)
        change = None if self._retired else self._level.look(now, self.stats)
        if change is not None:
            self.guard.tell(self._observer.utilization_changed, *change)
        for thread in self.connects.overdue(now):
            self.tell_connects(by=thread)
        return min(self.begun_of(going_on), default=NEVER) + self.long_hold

    def _is_back(self, loan: Loan) -> bool:
        pool = self._pool()
        return pool is not None and self._kind.is_back(pool, loan.slot)

    @property
    def served(self) -> int:
        """Number of checkouts that received a connection."""
        return self.idle_checkouts + self.queued_checkouts + self.new_checkouts

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to watch."""
        return not (self.holds or self.quiet or self.untold) and (self._retired or self._level.settled)

    def _flag(self, loan: Checkout, now: float) -> None:
        loan.flagged = True
        loan.flagged_at = now
        self.long_holds += 1

    # Its end

    def retire(self) -> None:
        """End the reports of this pool and free its name; holds in progress are still watched."""
        self._retired = True
        registry.release_name(self.name, self)

    def _take_over(self, before: Ledger) -> None:
        """Take over the totals of a predecessor and of its predecessors, whose pools may still be in use."""
        self._before, before._before = [*before._before, before], []
        self.discarded = before.discarded
        before._is_replaced = True

    def _settle_accounts(self) -> None:
        """Add the totals of predecessors that cannot change any more."""
        for before in self._before.copy():
            if before.pool is None and not (before.holds or before.quiet):
                with suppress(ValueError):  # another thread has removed it
                    self._before.remove(before)
                    for name in TOTALS:
                        setattr(self, name, getattr(self, name) + getattr(before, name))

    @harmless
    def end(self, outcome: str, reason: str | None = None) -> None:
        """End the reports and every hold in progress, as the pool is closed, collected or no longer instrumented."""
        self._ended = True
        self.usual = None
        self.retire()
        for loan in self.holds_now():
            slot = loan.slot
            self.give_back(loan, outcome)
            if reason is not None:
                self.discard(slot, reason, None, loan)
        self.tell_connects()
        if self.turns is not None:
            self.turns.end()

    __del__ = leave_figures

    def _dropped(self, _ref: object) -> None:
        """Note that the pool was collected. A finalizer, so it does nothing else."""
        self.hook.dropped(self)

    def restart_after_fork(self) -> None:
        """Reset the ledger in a forked child, to which the parent's checkouts, connections and totals do not belong."""
        self.hook.forget_notes()
        self.start_afresh()
        self._before.clear()
        if self.turns is not None:
            self.turns = Turns()
        pool = self._pool()
        if pool is not None and not self._retired:
            try:
                self.discarded["forked"] = self._kind.abandon(pool)
            finally:
                self.guard.tell(self._observer.attached, self)


def _no_ledger() -> None:
    return None


def _words_of_a_pool(error: BaseException) -> str:
    """Return SQLAlchemy's own text about an exhausted pool, with its numbers; empty for any other error."""
    text = text_of(error)
    return known(text, re.findall(r"\d+(?:\.\d+)?", text[:LONGEST_NAME]))


def _collected(ledger_ref: weakref.ref[Ledger], key: int, ref: weakref.ref[Any]) -> None:
    """Note that a connection was collected without being closed. A finalizer, so it does nothing else."""
    ledger = ledger_ref()
    slot = None if ledger is None else ledger.slots.get(key)
    if ledger is None or slot is None or slot.ref is not ref or key in ledger.quiet:  # quiet: collected with its pool
        return
    ledger.slots.pop(key, None)
    if slot.checkout is not None:
        ledger.hook.later(partial(ledger.lose, slot))
    elif ledger._is_replaced:  # collected with a replaced pool, to which it had been returned
        ledger.hook.later(partial(ledger.discard, slot, "drained"))
