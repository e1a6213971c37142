"""The end of a session of tests: when all of them have passed, each declared signal has been seen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.emitted import SEEN, never_seen

NARROWED = ("keyword", "markexpr", "deselect", "lf", "ignore", "ignore_glob", "collectonly")
"""The options with which not all tests run."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the file of the session, whose name xdist's workers and forked children inherit."""
    if not _is_worker(session):
        number, os.environ[SEEN] = tempfile.mkstemp(prefix="otel-pgpool-seen-")
        os.close(number)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run of the whole suite after which a declared signal has not been seen."""
    if _is_worker(session):
        return
    if _is_whole(session.config) and exitstatus == pytest.ExitCode.OK and (missing := never_seen()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[MISSING] = missing
    Path(os.environ.pop(SEEN)).unlink()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what has not been seen."""
    if missing := config.stash.get(MISSING, []):
        terminalreporter.section("declared in telemetry/registry, and emitted by no test", red=True)
        for key in missing:
            terminalreporter.line(key)


MISSING = pytest.StashKey[list[str]]()


def _is_worker(session: pytest.Session) -> bool:
    return hasattr(session.config, "workerinput")


def _is_whole(config: pytest.Config) -> bool:
    is_narrowed = any(config.getoption(option, None) for option in NARROWED)
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not is_narrowed
