"""What an import of the package loads. Which module imports which is checked by import-linter, in ``make lint``."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_pool_imports_no_sdk() -> None:
    """Importing the package and making a pool, telemetry included, loads no module of OpenTelemetry's SDK."""
    program = (
        "import sys\n"
        "from otel_pgpool import ConnectionPool\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')], 'before any pool'\n"
        "pool = ConnectionPool(1, 2, 'postgresql://localhost/shop', open=False)\n"
        "assert 'otel_pgpool.telemetry' in sys.modules\n"
        "pool.close()\n"
        "print(*(name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("folder", ["telemetry", "instrumentation", "pool", "driver", "runtime"])
def test_the_library_uses_the_api_alone(folder: str) -> None:
    """The SDK is for programs: only ``otlp`` and the command import it."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "otel_pgpool" / folder).rglob("*.py")}
    users = [
        path
        for path, text in sources.items()
        if re.search(r"^\s*(from|import) opentelemetry\.(sdk|exporter)", text, re.MULTILINE)
    ]
    assert sources
    assert users == []


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("_checkout", "pool.checkout"),
        ("_core", "pool.core"),
        ("_liveness", "pool.liveness"),
        ("_settlement", "driver.error_text"),
        ("cli.postgres", "demo.postgres"),
    ],
)
def test_former_names(former: str, present: str) -> None:
    """A former name leads to the present module itself, so that a patch of either is a patch of both."""
    assert import_module(f"otel_pgpool.{former}") is import_module(f"otel_pgpool.{present}")


def test_former_name_of_the_target() -> None:
    """The class that connects has kept its former name there."""
    former = import_module("otel_pgpool._target")
    assert former.Target is import_module("otel_pgpool.driver.connect_target").ConnectTarget
