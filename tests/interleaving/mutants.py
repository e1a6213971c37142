"""Mutants of the hot path: source patches, each of which removes or swaps steps on which the pool rests.

A mutant is installed before the package is imported, so each one runs in a process of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """A change of one file of the package.

    Args:
        file: the file's path below the package.
        before: text that stands there once.
        after: text in its place.
        pairs: the pairs of operations that are run.
        world: the kind of pool that they are run on.
    """

    file: str
    before: str
    after: str
    pairs: tuple[tuple[str, ...], ...]
    world: str = "pool"


HANDOVER, SLOTS, HOLDS, CORE = "pool/handover.py", "pool/slots.py", "pool/holds.py", "pool/core.py"
FAST_PATH = "instrumentation/adapters/psycopg2/fast_path.py"
USES = (("use", "use"), ("use", "release"), ("acquire", "release"))
WAITS = (("acquire", "release"), ("time out", "release"), ("use", "use"), ("hand over", "release"))

RELEASE = """        slot.hold_seconds += held
        slot.checkout = None
        slot.seen = now
        slot.conn = conn
        self.idle.append(slot)
"""
SHRINK = """            self.minconn, self.maxconn = minconn, maxconn
            if self.remaining > maxconn:  # before idle slots are removed, so that a release in between sees it
                for slot in self.members:
                    slot.review_at = AT_ONCE
            surplus = self._pop_idle_to_close(self.remaining - maxconn)
"""

MUTANTS: dict[str, Mutant] = {
    "an acquire reads the last idle slot, then deletes it": Mutant(
        HANDOVER,
        """            slot = self.idle.pop()
        except IndexError:
            return None
""",
        """            slot = self.idle[-1]
            del self.idle[-1]
        except IndexError:
            return None
""",
        USES,
    ),
    "an acquire reads whether the maintenance is parked before it removes its slot": Mutant(
        HANDOVER,
        """        if self.queue:
            return None
        try:
            slot = self.idle.pop()
        except IndexError:
            return None
""",
        """        if self.queue:
            return None
        slow = slow or self.parked
        try:
            slot = self.idle.pop()
        except IndexError:
            return None
        self = type("Early", (), {"parked": slow})
""",
        (("park", "acquire"), ("park", "use")),
    ),
    "a release looks whether it holds, then deletes": Mutant(
        HANDOVER,
        """        try:
            del checkout.held
        except AttributeError:
            return NOT_HELD
        slot = checkout.slot
        held = now""",
        """        if not checkout.is_held:
            return NOT_HELD
        try:
            del checkout.held
        except AttributeError:
            pass
        slot = checkout.slot
        held = now""",
        (("release", "release again"),),
    ),
    "a release sets the mark to False instead of deleting it": Mutant(
        HANDOVER,
        """            del checkout.held
        except AttributeError:
            return NOT_HELD
        slot = checkout.slot
        held = now""",
        """            checkout.held = False
        except AttributeError:
            return NOT_HELD
        slot = checkout.slot
        held = now""",
        (("release", "release again"), ("release", "park")),
    ),
    "a release does not look at the queue again": Mutant(
        HANDOVER, "        if self.queue or now >= slot.review_at:\n", "        if now >= slot.review_at:\n", WAITS
    ),
    "a release does not look again whether its connection is to go": Mutant(
        HANDOVER,
        "        if self.queue or now >= slot.review_at:\n",
        "        if self.queue:\n",
        (("release", "drain"), ("release", "shrink"), ("release", "close")),
    ),
    "a release appends its slot before it puts the connection there": Mutant(
        HANDOVER,
        "        slot.conn = conn\n        self.idle.append(slot)\n        if self.queue",
        "        self.idle.append(slot)\n        slot.conn = conn\n        if self.queue",
        USES,
    ),
    "a release appends its slot before it removes the checkout": Mutant(
        HANDOVER,
        RELEASE,
        RELEASE.replace("        slot.checkout = None\n", "") + "        slot.checkout = None\n",
        USES,
    ),
    "a release looks at the queue before it appends its slot": Mutant(
        HANDOVER,
        RELEASE + "        if self.queue or now >= slot.review_at:\n",
        "        again = self.queue or now >= slot.review_at\n" + RELEASE + "        if again:\n",
        WAITS,
    ),
    "a waiter does not look at the idle connections after it has queued": Mutant(
        HANDOVER,
        "            waiter = self.queue.join(checkout)\n            self._serve_waiters(now)\n",
        "            waiter = self.queue.join(checkout)\n",
        WAITS,
    ),
    "a release that sees a waiter does not serve it": Mutant(
        HANDOVER,
        "        with self.lock:\n            self._serve_waiters(now)\n            if now < slot.review_at",
        "        with self.lock:\n            if now < slot.review_at",
        WAITS,
    ),
    "the queue is served without regard to another thread's pop": Mutant(
        HANDOVER,
        """            except IndexError:  # another thread has acquired it
                return
""",
        """            except ZeroDivisionError:
                return
""",
        (("acquire", "acquire", "release"),),
    ),
    "a waiter is woken before its checkout is marked": Mutant(
        HANDOVER,
        """        checkout.held = True
        slot.checkout = checkout
        waiter.conn = conn
        try:  # noqa: SIM105 - without a call of `suppress`, see above
            waiter.lock.release()
        except RuntimeError:  # `renew_waits` has woken the waiter, which has not run since
            pass
""",
        """        waiter.conn = conn
        waiter.lock.release()
        checkout.held = True
        slot.checkout = checkout
""",
        (("hand over", "acquire"), ("use", "release"), ("use", "use")),
    ),
    "a waiter that leaves does not look whether it was served": Mutant(
        HANDOVER,
        "            return None if waiter is None else waiter.conn\n",
        "            return None\n",
        (("time out", "release"), ("time out", "use")),
    ),
    "a waiter that leaves does so without the lock": Mutant(
        HANDOVER,
        "        with self.lock:\n            self.queue.leave(checkout)\n            return None if waiter",
        "        if True:\n            conn = waiter and waiter.conn\n            self.queue.leave(checkout)\n"
        "            return conn\n            return None if waiter",
        (("time out", "release"), ("time out", "use")),
    ),
    "the maintenance looks for work before it says that it parks": Mutant(
        SLOTS,
        """            self.parked = True
            if self.used or self.checking or self.closing or self.opening:
                self.parked = False
""",
        """            if not (self.used or self.checking or self.closing or self.opening):
                self.parked = True
""",
        (("park", "acquire"), ("park", "use")),
    ),
    "a resize marks the connections after it has removed idle ones": Mutant(
        CORE,
        SHRINK,
        """            surplus = self._pop_idle_to_close(self.remaining - maxconn)
            self.minconn, self.maxconn = minconn, maxconn
            if self.remaining > maxconn:
                for slot in self.members:
                    slot.review_at = AT_ONCE
""",
        (("shrink", "release"), ("shrink", "use")),
    ),
    "a drain takes the idle connections before it marks all": Mutant(
        CORE,
        """        for slot in self.members:
            slot.mark_for_eviction(reason)
        return self._pop_idle_to_close(len(self.idle))
""",
        """        popped = self._pop_idle_to_close(len(self.idle))
        for slot in self.members:
            slot.mark_for_eviction(reason)
        return popped
""",
        (("drain", "release"), ("drain", "use"), ("close", "release")),
    ),
    "idle connections are taken without regard to another thread's pop": Mutant(
        SLOTS,
        "            except IndexError:  # another thread has removed the last one\n",
        "            except ZeroDivisionError:\n",
        (("drain", "use"), ("drain", "acquire"), ("close", "acquire")),
    ),
    "an idle connection is looked up, then removed": Mutant(
        SLOTS,
        """        try:
            self.idle.remove(slot)
        except ValueError:
            return False
""",
        """        if slot not in self.idle:
            return False
        self.idle.remove(slot)
""",
        (("evict", "use"), ("check", "acquire"), ("evict", "acquire")),
    ),
    "the totals of past connections are replaced in two steps": Mutant(
        SLOTS,
        "            self.totals_snapshot = (idle + slot.idle_checkouts, held + slot.hold_seconds, rest)\n",
        "            self.totals_snapshot = (idle, held, rest)\n"
        "            self.totals_snapshot = (idle + slot.idle_checkouts, held + slot.hold_seconds, rest)\n",
        (("look", "discard"), ("look", "drain")),
    ),
    "the maintenance reads the checkout of a slot twice": Mutant(
        "pool/checkout.py",
        """        return self.conn is None and checkout is not None and checkout.is_held
""",
        """        return self.conn is None and self.checkout is not None and self.checkout.is_held
""",
        (("park", "release"), ("park", "use")),
    ),
    "a light getconn counts after a call that reads the total": Mutant(
        FAST_PATH,
        "                tracker.idle_checkouts += 1\n",
        "                before = tracker.idle_checkouts\n"
        "                monotonic()\n"
        "                tracker.idle_checkouts = before + 1\n",
        (("getconn", "getconn"), ("use", "use")),
        "light",
    ),
    "a light putconn looks, then deletes": Mutant(
        FAST_PATH,
        "(light := tracker.light.pop(id(conn), None)) is None:",
        "(light := tracker.light.get(id(conn), None)) is None or tracker.light.__delitem__(id(conn)):",
        (("putconn", "list holders"), ("putconn", "watch")),
        "light",
    ),
    "a light getconn reads whether the watch is parked before it adds its hold": Mutant(
        FAST_PATH,
        """            conn = original(self, None)  # passing None explicitly is faster than the default
            if tracker.pending""",
        """            conn = original(self, None)
            watch = type("Early", (), {"parked": calls.watch.parked, "wake": calls.watch.wake})
            if tracker.pending""",
        (("getconn", "watch"),),
        "light",
    ),
    "a promotion removes the light checkout before it adds the record": Mutant(
        "instrumentation/open_checkouts.py",
        """        self.held[checkout] = None
        removed = self.light.pop(slot.key, None)
""",
        """        slot.checkout = None
        removed = self.light.pop(slot.key, None)
        slot.checkout = checkout
        self.held[checkout] = None
""",
        (("putconn", "list holders"), ("use", "list holders")),
        "light",
    ),
}


def install(name: str) -> None:
    """Patch the source of one file of the package, which must not have been imported yet."""
    mutant = MUTANTS[name]
    if any(module.startswith("otel_pgpool") for module in sys.modules):
        raise RuntimeError("the package is imported already")
    original = SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        if not self.path.endswith("otel_pgpool/" + mutant.file):
            return original(self, fullname)
        source = self.get_data(self.path).decode()
        if source.count(mutant.before) != 1:
            raise RuntimeError(f"mutant {name!r}: its text stands {source.count(mutant.before)} times in {mutant.file}")
        return compile(source.replace(mutant.before, mutant.after), self.path, "exec", dont_inherit=True)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
