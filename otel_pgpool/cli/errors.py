"""Why a command cannot do what it was asked for, or not to its end."""

from __future__ import annotations


class CommandError(Exception):
    """One line that names the option or variable and says what to change; no password in it."""


class BrokenOff(BaseException):
    """The command ends before its time, cleaned up. Its text says why; it is empty where nobody wants to know."""

    status = 1
    """The exit status."""
    kept = ""
    """What stays of it and where, in words; empty if nothing does."""
