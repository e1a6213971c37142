"""Signals such as Ctrl-C, which end the work but not the clean-up."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from otel_pgpool.cli.errors import BrokenOff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupted(BrokenOff):
    """The end of a command by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = 128 + signum  # as shells report a program ended by this signal: 130 for Ctrl-C


class Interrupts:
    """Handlers of SIGINT, SIGTERM and SIGHUP, which raise `Interrupted` inside `exposed` blocks only.

    Outside these blocks a signal is only noted, so that start-up steps and clean-up are completed.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        """The first signal received, or None."""
        self._exposed = False

    def install(self) -> None:
        """Install the handlers, in the main thread. SIGHUP stays ignored if it is, as under nohup."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raise `Interrupted` if a signal was received."""
        if self.pending is not None:
            raise Interrupted(self.pending)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Let a signal raise `Interrupted` inside the block; also one that was received before."""
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
