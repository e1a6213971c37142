"""What is known of a pool that is not ours: who holds what since when, and the totals; told to the one telemetry."""

from __future__ import annotations

import re
import threading
import weakref
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool import _checkout, _registry
from otel_pgpool._checkout import Attempt, Blocker, Loan
from otel_pgpool._clock import monotonic
from otel_pgpool._description import describe
from otel_pgpool._errors import LONGEST_HOLDERS, PoolTimeout, error_type, timeout_error
from otel_pgpool._fork import renewed
from otel_pgpool._guard import Guard, is_asynchronous
from otel_pgpool._level import Level, level_name
from otel_pgpool._messages import known
from otel_pgpool._observer import Connect, LastFigures, PoolStats, leave_figures
from otel_pgpool._refusal import is_refusal
from otel_pgpool._slot import NEVER
from otel_pgpool._texts import LONGEST_NAME, class_of, text_of
from otel_pgpool.instrumentation.connects import Connects
from otel_pgpool.instrumentation.driver import SeenSlot, pid_of
from otel_pgpool.instrumentation.holds import Holds
from otel_pgpool.instrumentation.kind import Levels
from otel_pgpool.instrumentation.turns import Turns
from otel_pgpool.telemetry import Telemetry
from otel_pgpool.telemetry.metrics import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool._checkout import Checkout, Stack
    from otel_pgpool._slot import Slot
    from otel_pgpool._target import Target
    from otel_pgpool.instrumentation.connects import Outage
    from otel_pgpool.instrumentation.hook import Hook
    from otel_pgpool.instrumentation.kind import Kind


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
    """The opposite of a `Silence`: every checkout is heard of."""

    def __init__(self) -> None:
        self._real_instrument = True


LOUD = Loud()

LEDGER = "_otel_pgpool"
"""The attribute of a pool that holds its ledger: found at no cost, and gone with the pool.

Its class has none of that name: since 3.12 Python looks slowly for what both have.
"""


def harmless(method: Callable[..., Any]) -> Callable[..., Any]:
    """Whatever goes wrong in a method of the ledger is logged, and goes no further."""

    @wraps(method)
    def guarded(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
            self.guard.lament(error)
            return None

    return guarded


class Ledger(Holds):
    """One pool's. It holds the pool weakly, and outlives it only until its checkouts have ended.

    A checkout that leaves neither span nor record may be kept as a `QuietHold`, at a third of the price of a `Loan`; it
    becomes one when there is something to tell of it.

    It takes no lock. Counts are plain ``+=``, which CPython does not interrupt: it switches threads at calls and
    backward jumps only. Whatever goes wrong in here is logged once a minute, and the program goes on.
    """

    __slots__ = (  # more attributes than CPython keeps at hand in a dictionary
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
        self._before: list[Ledger] = []  # of pools in whose place this one stands, and which somebody may still use
        self._is_replaced = False
        self.target = target
        self.turns = Turns() if hook.settings.wait_timeout is not None and kind.waits(pool) else None
        self.usual: object = None  # who may handle its requests in the shortest way, and nobody else, until its end
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
        # A wait takes more than a quiet hold knows.
        self.silence = LOUD if self.turns is not None else self._observer.silence or LOUD
        self.name: str = _registry.register(self, name)
        self.guard = Guard(self.name)
        self._pool = weakref.ref(pool, self._dropped)
        try:
            self._observer.attached(self)
            setattr(pool, LEDGER, self)
        except BaseException:
            self.retire()
            raise

    def start_afresh(self) -> None:
        """Nothing is out, known or counted."""
        super().start_afresh()
        self.waiting: dict[Loan, None] = {}
        self.connects = Connects()
        self.untold = self.connects.untold  # which every checkout looks at
        self._level = Level(monotonic())
        self._serials = 0
        self.idle_checkouts = self.queued_checkouts = self.new_checkouts = 0
        self.queued = self.timeouts = self.errors = self.retries = self.long_holds = self.created = 0
        self.wait_seconds = self.hold_seconds = 0.0
        self.discarded: dict[str, int] = defaultdict(int)  # a Counter would call Python for the first of a kind

    # A checkout

    def ask(self, stack: Stack) -> Loan:
        """A caller asks for a connection."""
        return self.begin(Loan(), stack)

    def begin(self, loan: AnyLoan, stack: Stack) -> AnyLoan:
        """The same with a record of their own. On the hot path, hence the lines of `begin` stand here again."""
        loan.stack = stack
        loan.thread = _checkout.here.thread
        loan.path = loan.observed = loan.queued = loan.error_type = None
        loan.block = loan.flagged = False
        loan.retries = 0
        if self.silence._real_instrument is None:
            loan.heard = False
        else:
            loan.heard = True
            try:
                self._observer.started(loan)
            except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
                self.guard.lament(error)
        loan.started = monotonic()
        return loan

    def queue(self, loan: Loan) -> None:
        """It has to wait for those who hold now."""
        self.queue_since(loan, monotonic())
        self.waiting[loan] = None

    @harmless
    def queue_since(self, loan: Loan, since: float) -> None:
        """It turned out that it had to wait, from then on."""
        loan.queued = since
        loan.waits_for = "queued"
        self.queued += 1
        if loan.observed is not None:
            loan.blockers = [Blocker.of(hold, since) for hold in self.holds_now()[:LONGEST_HOLDERS]]

    def lend(self, loan: Loan, conn: Any) -> None:
        """It was given one."""
        try:
            slot = self.slots.get(id(conn)) or self.enter(conn)
            before: Any = slot.checkout
            if before is not None:  # it came back by a way that is not seen, or was asked for once more
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
            if loan.heard:  # before the watch can tell that it is long
                try:
                    self._observer.acquired(loan)
                except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
                    self.guard.lament(error)
            self.holds[loan] = None
            if self.hook.parked and not self._ended:
                self.hook.wake()
        except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
            self.guard.lament(error)
        if self._ended:  # in the meantime
            self.give_back(loan)

    def pass_on(self, loan: Loan, given: Any) -> None:
        """It was given something that is not the pool's to take back: nobody will tell of its return."""
        self.lend(loan, given)
        self.give_back(loan)
        self.slots.pop(id(given), None)

    def _find_path(self, loan: Loan) -> None:
        """It had to wait, or somebody has connected."""
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
        """It got none.

        Args:
            loan: whose.
            error: what the caller gets to see.
            refusal: what telemetry calls it: ``timeout``, ``closed``; otherwise the SQLSTATE or the name of its class.
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
        """The connection came back, or is known to be gone; a second time nothing happens.

        Args:
            loan: whose.
            outcome: as telemetry calls it.
            error: of the pool's own work on it, such as its rollback.
            at: when, if not now.
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
                self._end_hold(loan, now, outcome, error)  # what was left undone of it
                raise
            self.guard.lament(raised)  # type: ignore[arg-type]  # an ``Exception``

    def _end_hold(self, loan: Loan, now: float, outcome: str, error: BaseException | None) -> None:
        """Each step may be done once more."""
        slot = loan.slot
        following = slot.checkout
        if following is loan:
            slot.checkout = None
        elif following is not None:  # lent again before its return was done
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
        """The collector has taken a connection that nobody had given back, and that was never the pool's to keep."""
        loan: Any = slot.checkout
        if loan is not None and hasattr(loan, "lent"):
            self.give_back(loan, "reclaimed")
            self.discard(slot, "reclaimed", None, loan)

    def speak_up(self, conn: Any) -> Loan | None:
        """The checkout that the quiet hold of a connection becomes."""
        return self.speak_up_of(self.slot_of(conn))

    # Connections

    @harmless
    def leads_to(self, target: Target) -> None:
        """It is known now where the connections lead."""
        before, self.target = self.target, target
        told = before.address, before.port, before.namespace
        if target.address and (target.address, target.port, target.namespace) != told:
            self.guard.tell(self._observer.attached, self)

    def enter(self, conn: Any) -> Slot:
        """Know a connection from now on."""
        slot = SeenSlot()
        self._serials += 1
        slot.serial = self._serials
        slot.key = id(conn)
        slot.pid = pid_of(conn)
        try:
            slot.ref = weakref.ref(conn, partial(_collected, weakref.ref(self), slot.key))
        except Exception:  # noqa: BLE001 - what a program's own factory makes may not allow it
            slot.ref = lambda: None  # type: ignore[assignment]
        self.slots[slot.key] = slot
        return slot

    def slot_of(self, conn: Any) -> Slot:
        """A connection's, which may be new to us."""
        return self.slots.get(id(conn)) or self.enter(conn)

    @harmless
    def connected(self, began: float, conn: Any) -> None:
        """A physical connection was made. It is told later, outside the pool's locks."""
        self.created += 1
        self.enter(conn)
        self.connects.made(began, conn)

    @harmless
    def connect_failed(self, began: float, error: BaseException) -> None:
        """An attempt failed. It is told later."""
        self.connects.failed(began, error, describe(self.target, error))

    @harmless
    def tell_connects(self, loan: Loan | None = None, by: int | None = None) -> bool:
        """Tell of the connects that this thread made for a checkout, or for nobody; True if one succeeded."""
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
            loan.retried(Attempt(connect.ended, class_of(connect.error), 0.0), None)  # an error keeps its frames
        tell(observer.connect_failed, connect)
        if is_refusal(connect.error):
            if outage is not None:
                tell(observer.outage_ended, outage.attempts, connect.ended - outage.since)
        elif outage is None and isinstance(connect.error, Exception):
            tell(observer.outage_started, connect)
        return False

    @harmless
    def discard(self, slot: Slot, reason: str, error: BaseException | None = None, loan: Loan | None = None) -> None:
        """A connection was closed."""
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
        self.discarded[reason] += 1
        self.guard.tell(self._observer.discarded, [slot], reason, error, loan)

    # The whole pool

    def __reduce__(self) -> tuple[Any, ...]:
        """A pool that can be pickled or copied still can: its copy has no ledger yet."""
        return _no_ledger, ()

    @property
    def address(self) -> str:
        """Host of the server, or the folder of its Unix socket."""
        return self.target.address

    @property
    def port(self) -> int | None:
        """Port of the server; None where the hosts of a multi-host DSN differ in it."""
        return self.target.port

    @property
    def namespace(self) -> str:
        """Name of the database."""
        return self.target.namespace

    @property
    def closed(self) -> bool:
        """Whether its series have ended: the pool is closed or gone, or not hooked any more."""
        return self._retired or self._levels().closed

    @property
    def pool(self) -> Any:
        """The pool, while it lives."""
        return self._pool()

    def _levels(self) -> Levels:
        pool = self._pool()
        if pool is None:
            return Levels(0, 0, 0, 0, 0, closed=True)
        try:
            return self._kind.read(pool)
        except Exception as error:  # noqa: BLE001 - a program may have made it its own way
            self.guard.lament(error)
            return Levels(0, 0, len(self.holds), 0, None)

    @renewed
    def stats(self) -> PoolStats:
        """Levels, read from the pool itself, and totals, unless another counts them as its own."""
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

    # The watch

    @harmless
    def look(self, now: float) -> float:
        """Flag long holds, report the utilization; when the next look is due, as a reading of the clock."""
        self.speak_up_all(now - self.long_hold)
        going_on = []
        for loan in self.holds.copy():
            if not loan.flagged and loan.acquired + self.long_hold > now:
                going_on.append(loan)
            elif self._is_back(loan):
                self.give_back(loan, at=loan.acquired)  # since when, nobody knows
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
        """How many checkouts were given a connection."""
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
        """End the series, and let another have the name; what is out is still watched."""
        self._retired = True
        _registry.release_name(self.name, self)

    def _take_over(self, before: Ledger) -> None:
        """Go on counting where the ledgers of this pool's predecessors are, while these may still count."""
        self._before, before._before = [*before._before, before], []
        self.discarded = before.discarded
        before._is_replaced = True

    def _settle_accounts(self) -> None:
        """Add what a predecessor has counted, once its pool is gone and nothing of it is out."""
        for before in self._before.copy():
            if before.pool is None and not (before.holds or before.quiet):
                with suppress(ValueError):  # another reader was faster
                    self._before.remove(before)
                    for name in TOTALS:
                        setattr(self, name, getattr(self, name) + getattr(before, name))

    @harmless
    def end(self, outcome: str, reason: str | None = None) -> None:
        """End every checkout that is out, and the series; the pool is closed, gone, or not hooked any more."""
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
        """The pool was collected: this is a finalizer, so it does no more than that."""
        self.hook.dropped(self)

    def _after_fork(self) -> None:
        """In a forked child the parent's checkouts and connections are not ours, and its totals neither."""
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
    """Return what SQLAlchemy's pool says when it gives nothing, with its numbers; empty for anything else."""
    text = text_of(error)
    return known(text, re.findall(r"\d+(?:\.\d+)?", text[:LONGEST_NAME]))


def _collected(ledger_ref: weakref.ref[Ledger], key: int, ref: weakref.ref[Any]) -> None:
    """A connection went, unclosed. A finalizer: it only takes notes."""
    ledger = ledger_ref()
    slot = None if ledger is None else ledger.slots.get(key)
    if ledger is None or slot is None or slot.ref is not ref or key in ledger.quiet:  # quiet: its pool went, to be told
        return
    ledger.slots.pop(key, None)
    if slot.checkout is not None:
        ledger.hook.later(partial(ledger.lose, slot))
    elif ledger._is_replaced:  # with the pool, after its connection was given back to that
        ledger.hook.later(partial(ledger.discard, slot, "drained"))
