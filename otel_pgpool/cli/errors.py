"""Why a command cannot do what it was asked for."""

from __future__ import annotations


class CommandError(Exception):
    """One line that names the option or variable and says what to change; no password in it."""
