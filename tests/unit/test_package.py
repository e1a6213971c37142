"""The package's names, which are loaded with their first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import otel_pgpool


def test_every_public_name_is_there() -> None:
    """To be used, and to be found by an editor."""
    assert [name for name in otel_pgpool.__all__ if getattr(otel_pgpool, name, None) is None] == []
    assert set(otel_pgpool.__all__) <= set(dir(otel_pgpool))


def test_other_names_are_refused_as_anywhere() -> None:
    """An AttributeError, so that ``hasattr`` and imports of submodules work."""
    with pytest.raises(AttributeError, match="module 'otel_pgpool' has no attribute 'Pool'"):
        otel_pgpool.Pool  # type: ignore[attr-defined]  # noqa: B018 - that it raises


def test_the_package_does_not_load_psycopg2() -> None:
    """Psycopg2 is imported with the first name that needs it."""
    program = (
        "import sys, otel_pgpool; before = 'psycopg2' in sys.modules; "
        "from otel_pgpool import ConnectionPool; print(before, 'psycopg2' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "True"]


def test_the_package_does_not_load_opentelemetry() -> None:
    """OpenTelemetry is imported with the first name that needs it."""
    program = (
        "import sys, otel_pgpool; before = 'opentelemetry' in sys.modules; "
        "from otel_pgpool import Telemetry; print(before, 'opentelemetry' in sys.modules, Telemetry.__name__)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "True", "Telemetry"]


def test_the_command_is_there_before_psycopg2() -> None:
    """So that it can take over Ctrl-C, and say what is missing."""
    program = "import sys, otel_pgpool.cli; print([name for name in ('psycopg2', 'argparse') if name in sys.modules])"
    isolated = [sys.executable, "-c", program]
    shown = subprocess.run(isolated, capture_output=True, text=True, check=True, env={}).stdout
    assert shown.strip() == "[]"
