"""The callers of a pool, as values of the metrics' attribute ``otel_pgpool.caller``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from otel_pgpool.runtime.text import LONGEST_NAME, MOST_NAMES
from otel_pgpool.telemetry.caller_names import name_of_code, name_of_span, name_without_path
from otel_pgpool.telemetry.entry_spans import entry_spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import CodeType

    from opentelemetry.context import Context

    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.checkout import Checkout

MOST_CALLERS = 50
"""Maximum number of different values for the pools of one name."""

OTHER = "other"
"""The value for all further callers."""


class Callers:
    """The callers of the pools of one name, bounded in number.

    A caller is named after its entry span if that is recorded, and otherwise after the call site of the checkout.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant, for a signal handler and for finalizers
        self._shown: dict[str, None] = {}
        self._of_spans: dict[str, str] = {}  # values by the span's name
        self._of_code: dict[int, tuple[CodeType, str]] = {}  # values by id of the code, which is kept

    def reset_after_fork(self, *, series_dropped: bool) -> None:
        """Replace the lock in a forked child, and forget the parent's callers if the SDK has dropped their series."""
        self._lock = threading.RLock()
        if series_dropped:
            self._shown, self._of_spans, self._of_code = {}, {}, {}

    def of(self, context: Context, stack: Stack) -> str:
        """Return the value for a checkout, requested in a context and at these call sites."""
        entry = entry_spans.find(context)
        value = None if entry is None else self._of_span(name_without_path(entry))
        return value or self.at(stack)

    def at(self, stack: Stack) -> str:
        """Return the value for the innermost of these call sites."""
        if not stack:  # every frame was skipped
            return self._bounded(OTHER)
        code = stack[0]
        known = self._of_code.get(id(code))
        if known is None:
            if len(self._of_code) >= MOST_NAMES:
                self._of_code.clear()
            known = self._of_code[id(code)] = code, self._bounded(name_of_code(code))
        return known[1]

    def _of_span(self, name: str) -> str:
        value = self._of_spans.get(name)
        if value is None and len(name) > LONGEST_NAME:  # not remembered: it may be of any length
            return self._bounded(name_of_span(name))
        if value is None:
            if len(self._of_spans) >= MOST_NAMES:
                self._of_spans.clear()
            value = self._of_spans[name] = self._bounded(name_of_span(name))
        return value

    def _bounded(self, value: str) -> str:
        if not value:
            return value
        with self._lock:
            if value not in self._shown:
                if len(self._shown) >= MOST_CALLERS:
                    value = OTHER
                self._shown[value] = None
        return value

    def count(self, holds: Iterable[Checkout]) -> Mapping[str, int]:
        """Return the number of these holds for each caller, 0 for callers that have none any more."""
        counts = dict.fromkeys(self._shown.copy(), 0)
        for hold in holds:
            caller = hold.caller_name or self.at(hold.stack)
            counts[caller] = counts.get(caller, 0) + 1
        return counts
