"""Ctrl-C and its kin: they end the work, and never the clean-up."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from otel_pgpool.cli.errors import BrokenOff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupted(BrokenOff):
    """A signal asked us to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = 128 + signum  # what shells give a program that this signal ended: 130 for Ctrl-C


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP are noted, and raised as `Interrupted` only inside of `exposed` blocks.

    So whatever stands outside of them, start-up steps and clean-up, runs to its end.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        """The first signal that came."""
        self._exposed = False

    def install(self) -> None:
        """Handle them from now on, in the main thread. SIGHUP stays ignored where it is, as under nohup."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.pending is not None:
            raise Interrupted(self.pending)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Here a signal, also one that came before, raises `Interrupted`."""
        try:
            self._exposed = True
            self.check()
            yield
        finally:
            self._exposed = False

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.pending is None:
            self.pending = signum
            if self._exposed:
                self._exposed = False
                raise Interrupted(signum)
