"""How a command ends early: errors, and signals such as Ctrl-C, which end the work but not the clean-up."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class CommandError(Exception):
    """The command cannot begin.

    The message is one line with the option or variable and what to change, without a password.
    """


class Aborted(BaseException):
    """The command ends early, after the clean-up. The message is the reason; an empty one is not printed."""

    status = 1
    """The exit status."""
    partial_output = ""
    """A text about the output that remains and its place; empty if there is none."""


class Interrupted(Aborted):
    """The command is ended by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = 128 + signum  # as shells report a program ended by this signal: 130 for Ctrl-C


class Interrupts:
    """Handlers of SIGINT, SIGTERM and SIGHUP, which raise `Interrupted` inside `interruptible` blocks only.

    Outside these blocks a signal is only noted, so that start-up steps and clean-up are completed.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        """The first signal received, or None."""
        self._interruptible = False

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
    def interruptible(self) -> Iterator[None]:
        """Let a signal raise `Interrupted` inside the block; also one that was received before."""
        try:
            self._interruptible = True
            self.check()
            yield
        finally:
            self._interruptible = False

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.pending is None:
            self.pending = signum
            if self._interruptible:
                self._interruptible = False
                raise Interrupted(signum)
