"""The failed attempts to connect of the pools of one name: a total that belongs to the name, as all totals do."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConnectFailures:
    """Failed attempts to connect of the pools of one name, counted by the type of their error."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant, for a signal handler and for finalizers
        self._counts: dict[str, int] = {}

    def add(self, error_type: str) -> None:
        """Count a failed attempt."""
        with self._lock:
            self._counts[error_type] = self._counts.get(error_type, 0) + 1

    def counts(self) -> Mapping[str, int]:
        """Return the counts by the type of the error. A collection takes no lock: this copy is one step."""
        return self._counts.copy()

    def reset_after_fork(self) -> None:
        """Count from zero in a forked child."""
        self._lock = threading.RLock()
        self._counts = {}
