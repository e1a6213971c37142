"""The comparison of what tests see with the registry of the signals: what it refuses, and what it misses in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import emitted
from tests.support.documents import ROOT
from tests.support.emitted import UndeclaredError, check_point, check_record, check_span
from tests.support.signal_registry import registry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("nothing_noted")


@pytest.fixture
def nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what these tests make up out of the record of the session."""
    monkeypatch.setattr(emitted, "note", lambda _keys: None)


POOL = {"db.client.connection.pool.name": "shop"}
REFUSED = {
    "otel_pgpool.event": "connect_refused",
    "otel.event.name": "otel_pgpool.connect_refused",
    "error.type": "28P01",
}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"otel_pgpool.size": 1}, r"with \['otel_pgpool.size'\]"),
        ({"error.type": 28}, "error.type is 28, not of the type string"),
        ({"otel_pgpool.event": "connect_refusal"}, "otel_pgpool.event is 'connect_refusal', none of"),
        ({"otel.event.name": "otel_pgpool.refusal"}, "log otel_pgpool.refusal"),
        ({"error.type": None}, r"without the required \['error.type'\]"),
        ({"otel.event.name": None}, "record without an event"),
    ],
)
def test_records(changes: dict[str, Any], problem: str) -> None:
    """An event, an attribute, a type and a value have to be declared; what is required has to be there."""
    check_record(REFUSED | POOL, "WARNING")
    changed = {name: value for name, value in (REFUSED | POOL | changes).items() if value is not None}
    with pytest.raises(UndeclaredError, match=problem):
        check_record(changed, "WARNING")


def test_level_of_a_record() -> None:
    """A record has the declared level."""
    with pytest.raises(UndeclaredError, match="with the level ERROR"):
        check_record(REFUSED | POOL, "ERROR")


@pytest.mark.parametrize(
    "change", [{"unit": "ms"}, {"type": "gauge"}, {"name": "otel_pgpool.tries"}, {"attributes": {}}]
)
def test_metrics(change: dict[str, Any]) -> None:
    """A metric has the declared unit, instrument and attributes."""
    point: dict[str, Any] = {"name": "otel_pgpool.retries", "type": "sum", "monotonic": True, "unit": "{retry}"}
    check_point(SimpleNamespace(attributes=POOL, **point))  # type: ignore[arg-type]
    with pytest.raises(UndeclaredError):
        check_point(SimpleNamespace(**{"attributes": POOL, **point, **change}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "CLIENT"},
        {"events": [SimpleNamespace(name="pool.acquired", attributes={"otel_pgpool.path": "idle"})]},
        {"links": [SimpleNamespace(attributes={"otel_pgpool.relation": "blocked_by"})]},
    ],
)
def test_spans(change: dict[str, Any]) -> None:
    """A span has the declared kind, and the events and links that are declared for it."""
    held = SimpleNamespace(attributes={"otel_pgpool.held": 1.5, "otel_pgpool.connection.id": 1})
    span: dict[str, Any] = {
        "name": "pool.wait",
        "kind": "INTERNAL",
        "scope": SimpleNamespace(name="otel_pgpool"),
        "attributes": {**POOL, "otel_pgpool.blocker.count": 1},
        "events": [],
        "links": [held],
    }
    check_span(SimpleNamespace(**span))
    with pytest.raises(UndeclaredError):
        check_span(SimpleNamespace(**{**span, **change}))


SUITE = """
import os
from tests.support.emitted import note
from tests.support.signal_registry import registry

KEYS = sorted(registry().keys - {os.environ["LEFT_OUT"]})

def test_of_a_process():
    note(KEYS[::2])

def test_of_a_forked_child():
    if (pid := os.fork()) == 0:
        note(KEYS[1::2])
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(
    ("left_out", "arguments", "status"),
    [
        ("metric otel_pgpool.retries", ["-n", "2"], 1),
        ("value otel_pgpool.reason = resized", [], 1),
        ("metric otel_pgpool.retries", ["-k", "process"], 0),
    ],
)
def test_the_whole_suite(tmp_path: Path, left_out: str, arguments: list[str], status: int) -> None:
    """What no process of it has seen fails a run of the whole suite, and is listed; a part of the suite may miss it."""
    assert left_out in registry().keys
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    (tmp_path / "test_suite.py").write_text(SUITE)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "LEFT_OUT": left_out}
    environ.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.emitted_session", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    listed = [line for line in done.stdout.splitlines() if line in registry().keys]
    assert listed == ([left_out] if status else [])
