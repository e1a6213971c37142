"""The program's part in a failed connect: which of its callbacks has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from asyncpg.exceptions import InterfaceError

from otel_pgpool.driver.refusal_texts import OF_THE_SERVER
from otel_pgpool.errors import sqlstate
from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.runtime.text import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType, FrameType

INIT, SETUP, PASSWORD = "init", "setup", "password"
CONNECT = "connect()"
"""The function that a program passes as ``connect``. The name without parentheses stands for its arguments."""


class Cause(NamedTuple):
    """The callback that made a connect fail; empty if there is none."""

    callback: str = ""
    is_connected: bool = False
    """Whether the callback had a connection."""


def cause_of(pool: Any, error: BaseException) -> Cause:
    """Return which callback of the program made a connect of a pool fail."""
    found = _frames_after([*frames_of(error)], private.NEW_CONNECTION)
    if found is None or _is_lost(error):
        return Cause()
    frame, inner = found
    if private.has_connected(frame):
        return Cause(INIT, is_connected=True) if inner else Cause(CONNECT)  # if it returned no connection
    if _is_password_callback(inner):
        return Cause(PASSWORD)
    if not private.connects_itself(pool) and _frames_after(inner, private.CONNECT) is None:
        return Cause(CONNECT, is_connected=sqlstate(error) is not None)
    return Cause()


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """Iterate over the frames of an error's traceback, outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _frames_after(frames: Sequence[FrameType], code: CodeType | None) -> tuple[FrameType, Sequence[FrameType]] | None:
    """Return the innermost frame of this code, and those that it has called; None if there is none."""
    for index in reversed(range(len(frames))):
        if frames[index].f_code is code:
            return frames[index], frames[index + 1 :]
    return None


def _is_lost(error: BaseException) -> bool:
    """Return whether a callback failed because its connection was lost, or because the server cannot serve anyone."""
    state = sqlstate(error)
    if state is not None:
        return state[:2] in OF_THE_SERVER
    return isinstance(error, InterfaceError) and text_of(error).startswith("connection is closed")


def _is_password_callback(frames: Sequence[FrameType]) -> bool:
    """Return whether asyncpg was calling a function for the password, and not its own."""
    found = _frames_after(frames, private.CONNECT_ADDRESS)
    return found is not None and not (found[1] and private.is_asyncpg_frame(found[1][0]))
