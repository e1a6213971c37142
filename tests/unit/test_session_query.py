"""The query of a monitor: what enters its statement, and what is read from its answer."""

from __future__ import annotations

import json
import re

from otel_pgpool.pool.session_query import Session, read_answer, statement_for

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def test_nothing_but_a_traceparent_enters_the_statement() -> None:
    """A name that is none is left out, as is the process id 0 of an unknown session."""
    statement = statement_for([7, 0], [TRACEPARENT, "'; drop table orders; --"])
    assert f"'{{{TRACEPARENT}}}'::text[]" in statement
    assert "'{7}'::int[]" in statement
    assert "drop" not in statement


def test_statements_differ_in_literals_only() -> None:
    """However many sessions are asked for, ``pg_stat_statements`` keeps one entry."""
    texts = [statement_for(pids, names) for pids, names in [([], []), ([1, 2, 3], []), ([4], [TRACEPARENT] * 2)]]
    assert len({re.sub(r"'[^']*'", "?", text) for text in texts}) == 1


def test_an_answer() -> None:
    """Blockers are listed once, texts are one printable line, and what the server does not show is empty."""
    row = dict.fromkeys(Session._fields)
    row |= {"pid": 1, "blockers": [2, 3, 2], "application_name": "two\nlines"}
    answer = read_answer(json.dumps({"backend": 5, "client_port": None, "sessions": [row]}))
    assert answer.sessions[1].blockers == (2, 3)
    assert "\n" not in answer.sessions[1].application_name
    assert (answer.sessions[1].session_age, answer.sessions[1].client_port, answer.client_port) == (None, 0, 0)
