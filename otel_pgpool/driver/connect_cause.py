"""The cause of a failed connect, as far as its error tells: a phrase without addresses, names or the error's text."""

from __future__ import annotations

import errno
import os
import re
from enum import Enum

import psycopg2

from otel_pgpool.driver.messages import LONGEST_READ
from otel_pgpool.driver.refusal_texts import OF_THE_SERVER, answers, is_full, refuses, refuses_by_text
from otel_pgpool.errors import sqlstate
from otel_pgpool.runtime.text import text_of


class ConnectCause(Enum):
    """Why a connection could not be opened."""

    REFUSAL = "the server refuses the login or the database"
    FULL = "the server has no connection left"
    ANSWER = "the server answers, and accepts no connection"
    NOT_READY = "the server starts, stops or recovers"
    PROXY = "a proxy answers, and cannot reach the server"
    NO_LISTENER = "nothing listens at the server's address"
    NO_ANSWER = "the server does not answer in time"
    NO_ROUTE = "the server's host cannot be reached"
    NO_HOST = "the server's host name is unknown"
    CUT = "the connection is closed before it is ready"

    @property
    def is_up(self) -> bool:
        """Whether the server is up, so that connections that are open already can work."""
        return self in {ConnectCause.REFUSAL, ConnectCause.FULL, ConnectCause.ANSWER}


_NOT_READY = re.compile(r"the database system|terminating connection", re.IGNORECASE)
_PROXY = re.compile(r"cannot connect|login has been failing|shut down|crashed|wait_timeout|server login", re.IGNORECASE)


def _system(*numbers: int) -> str:
    """Return a pattern of the system's texts for numbers of errors, in the system's language."""
    return "|".join(re.escape(os.strerror(number)) for number in numbers)


_UNANSWERED = (
    (ConnectCause.NO_ANSWER, rf"timeout expired|did not end within|no answer within|{_system(errno.ETIMEDOUT)}"),
    (ConnectCause.NO_LISTENER, rf"{_system(errno.ECONNREFUSED)}|on socket .* failed: {_system(errno.ENOENT)}"),
    (ConnectCause.NO_ROUTE, _system(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)),
    (ConnectCause.NO_HOST, "could not translate host name|could not parse network address"),
    (ConnectCause.CUT, rf"closed the connection|{_system(errno.ECONNRESET, errno.EPIPE)}"),
)
"""Texts of connects that no server has answered; of several hosts, the first cause counts."""


def cause_of(error: BaseException | None) -> ConnectCause | None:
    """Return the cause of a failed connect; None if psycopg2 did not raise the error, or if its text is unknown."""
    if not isinstance(error, psycopg2.Error):
        return None
    text = text_of(error)[:LONGEST_READ]
    state = sqlstate(error)
    found = [_by_answer(answer) for answer in answers(text)]
    if state is not None and not state.startswith("08"):
        return _by_state(state)
    if found:  # of several hosts
        return next((cause for cause in found if cause.is_up), found[0])
    if refuses(error):
        return ConnectCause.REFUSAL
    return next((cause for cause, pattern in _UNANSWERED if re.search(pattern, text)), None)


def _by_state(state: str) -> ConnectCause:
    if not state.startswith(OF_THE_SERVER):
        return ConnectCause.REFUSAL
    return {"53": ConnectCause.FULL, "57": ConnectCause.NOT_READY}.get(state[:2], ConnectCause.ANSWER)


def _by_answer(answer: str) -> ConnectCause:
    if is_full(answer):
        return ConnectCause.FULL
    if refuses_by_text(answer):
        return ConnectCause.REFUSAL
    for cause, pattern in ((ConnectCause.NOT_READY, _NOT_READY), (ConnectCause.PROXY, _PROXY)):
        if pattern.search(answer):
            return cause
    return ConnectCause.ANSWER
