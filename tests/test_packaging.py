"""The built package: what is in it, and what it needs."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.support.artifacts import build, check, empty_environment, install, packed, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)


def test_the_built_package(tmp_path: Path) -> None:
    """Wheel and sdist, the wheel built from the sdist as a package index's users would.

    The wheel brings the package and its metadata, py.typed and the licence included, and no tests. From the sdist alone
    the package can be built and tested; it has what the repository has, and nothing else. An index can show both. With
    no psycopg2 at all, importing the pool says which extra brings one. Beside a psycopg2 the wheel needs only
    OpenTelemetry's API: no SDK is installed, none is imported.
    """
    sdist_file, wheel_file = build(tmp_path)
    check(sdist_file, wheel_file, "--cached", "--others", "--exclude-standard")
    with zipfile.ZipFile(wheel_file) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"otel_pgpool", "otel_pgpool-0.1.0.dist-info"}
    data = ("py.typed", "driver/known_texts.txt", "telemetry/sqlstates.txt")
    assert {f"otel_pgpool/{name}" for name in data} <= {*names}
    assert "otel_pgpool-0.1.0.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "test" in name]

    assert {"Makefile", "pyproject.toml", "otel_pgpool/__init__.py", "tests/conftest.py"} <= packed(sdist_file)

    python = empty_environment(tmp_path / "bare")
    install(python, wheel_file)
    importing = (
        "try: from otel_pgpool import ConnectionPool\nexcept ImportError as error: print(type(error).__name__, error)"
    )
    assert "otel-pgpool[binary]" in run(python, "-c", importing)

    install(python, "psycopg2-binary")
    shown = run(
        python,
        "-c",
        "from importlib.metadata import distributions\n"
        "from otel_pgpool import ConnectionPool\n"
        "print(ConnectionPool.__name__, *sorted(d.name for d in distributions()))",
    )
    assert shown.split() == [
        "ConnectionPool",
        "opentelemetry-api",
        "opentelemetry-semantic-conventions",
        "otel-pgpool",
        "psycopg2-binary",
        "typing_extensions",
    ]
