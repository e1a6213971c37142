"""The releases of libraries that are instrumented: an old one leaves the others alone."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from psycopg2.pool import ThreadedConnectionPool

from otel_pgpool.instrumentation import ADAPTERS, PgPoolInstrumentor, requirements
from otel_pgpool.instrumentation.installed_adapters import InstalledAdapters
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.requirements import met_requirements, refused_release

Installed = dict[str, Any]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the installed distributions."""

    def install(installed: Installed) -> None:
        def version(name: str) -> Any:
            if name not in installed:
                raise PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(requirements, "version", version)
        monkeypatch.setattr("opentelemetry.instrumentation.dependencies.version", version)

    return install


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"psycopg2": "2.9.9"}, ("psycopg2 >= 2.9",)),
        ({"psycopg2-binary": "2.9.9"}, ("psycopg2-binary >= 2.9",)),
        ({"psycopg2": "2.9", "psycopg2-binary": "2.9"}, ("psycopg2 >= 2.9", "psycopg2-binary >= 2.9")),
        ({"psycopg-pool": "3.2.1", "asyncpg": "0.29.0"}, ("psycopg-pool >= 3.2", "asyncpg >= 0.29")),
        ({"psycopg2": "2.9.9", "asyncpg": "0.27.0"}, ("psycopg2 >= 2.9",)),
        ({"asyncpg": "0.27.0"}, ()),
        ({"asyncpg": "not a version", "psycopg-pool": None}, ()),
        ({}, ()),
    ],
)
def test_dependencies(install: Any, installed: Installed, expected: tuple[str, ...]) -> None:
    """The instrumentor requires what is installed in an accepted release, so that OpenTelemetry finds no conflict."""
    install(installed)
    assert met_requirements() == tuple(PgPoolInstrumentor().instrumentation_dependencies()) == expected
    assert get_dependency_conflicts(expected) is None


def test_dependency_in_a_pre_release(install: Any) -> None:
    """A pre-release is never a conflict, whether or not OpenTelemetry accepts it."""
    install({"SQLAlchemy": "2.1.0b1"})
    assert get_dependency_conflicts(met_requirements()) is None


@pytest.mark.parametrize(
    ("module", "installed", "expected"),
    [
        ("asyncpg.pool", {"asyncpg": "0.27.0"}, "asyncpg 0.27.0; accepted: asyncpg >= 0.29"),
        (
            "psycopg2.pool",
            {"psycopg2": "2.8", "psycopg2-binary": "2.8.6"},
            "psycopg2 2.8, psycopg2-binary 2.8.6; accepted: psycopg2 >= 2.9 or psycopg2-binary >= 2.9",
        ),
        ("psycopg2.pool", {"psycopg2": "2.8", "psycopg2-binary": "2.9"}, None),
        ("sqlalchemy", {"SQLAlchemy": "2.1.0b1"}, None),
        ("asyncpg.pool", {"asyncpg": "not a version"}, None),
        ("asyncpg.pool", {}, None),
        ("shelf", {}, None),
    ],
)
def test_refused_release(install: Any, module: str, installed: Installed, expected: str | None) -> None:
    """An adapter is installed unless its library is known to be too old; a pre-release counts as its release."""
    install(installed)
    assert refused_release(module) == expected


def test_one_old_library(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An old library is left out, with a warning that names its version and what is accepted; the others are not."""
    install({"asyncpg": "0.27.0", "psycopg2": "2.9.9"})
    original = ThreadedConnectionPool.getconn
    installed = InstalledAdapters(ADAPTERS, InstrumentationOptions.of(environ={}), {"asyncpg", "psycopg2"})
    try:
        assert installed.install("asyncpg.pool") is None
        assert installed.install("psycopg2.pool") is not None
        assert ThreadedConnectionPool.getconn is not original
    finally:
        installed.remove()
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "asyncpg 0.27.0; accepted: asyncpg >= 0.29" in record.getMessage()
