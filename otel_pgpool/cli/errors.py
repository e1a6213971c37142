"""Errors that end a command."""

from __future__ import annotations


class CommandError(Exception):
    """The command cannot begin.

    The message is one line with the option or variable and what to change, without a password.
    """


class BrokenOff(BaseException):
    """The command ends early, after cleaning up. The message is the reason; if empty, nothing is printed."""

    status = 1
    """The exit status."""
    kept = ""
    """What remains and where, in words; empty if nothing does."""
