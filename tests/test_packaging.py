"""The built package: what is in it, and what it needs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(python: Path, *packages: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *packages)


def test_the_built_package(tmp_path: Path) -> None:
    """Wheel and sdist, the wheel built from the sdist as a package index's users would.

    The wheel brings the package and its metadata, py.typed and the licence included, and no tests. From the sdist alone
    the package can be built and tested. With no psycopg2 at all, importing the pool says which extra brings one. Beside
    a psycopg2 the wheel needs only OpenTelemetry's API: no SDK is installed, none is imported.
    """
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT)
    [wheel_file] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel_file) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"otel_pgpool", "otel_pgpool-0.1.0.dist-info"}
    data = ("py.typed", "driver/known_texts.txt", "telemetry/sqlstates.txt")
    assert {f"otel_pgpool/{name}" for name in data} <= {*names}
    assert "otel_pgpool-0.1.0.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "test" in name]

    [sdist_file] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist_file) as sdist:
        in_sdist = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert {"Makefile", "pyproject.toml", "otel_pgpool/__init__.py", "tests/conftest.py"} <= in_sdist

    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare/bin/python"
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
