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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist, the wheel built from the sdist as a package index's users would."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    [wheel] = folder.glob("*.whl")
    [sdist] = folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def bare_python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an environment with the wheel and its requirements only."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install(python, built[0])
    return python


def install(python: Path, *packages: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *packages)


def test_wheel_holds_the_package_alone(built: tuple[Path, Path]) -> None:
    """The wheel brings the package and its metadata, py.typed and the licence included, and no tests."""
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {"otel_pgpool", "otel_pgpool-0.1.0.dist-info"}
    assert {f"otel_pgpool/{name}" for name in ("py.typed", "driver/known_texts.txt", "telemetry/sqlstates.txt")} <= {
        *names
    }
    assert "otel_pgpool-0.1.0.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "test" in name]


def test_sdist_holds_the_tests(built: tuple[Path, Path]) -> None:
    """From the sdist alone the package can be built and tested."""
    with tarfile.open(built[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert {"Makefile", "pyproject.toml", "otel_pgpool/__init__.py", "tests/conftest.py"} <= names


def test_without_psycopg2_the_error_names_the_extra(bare_python: Path) -> None:
    """With no psycopg2 at all, importing the pool says which extra brings one."""
    shown = run(
        bare_python,
        "-c",
        "try: from otel_pgpool import ConnectionPool\nexcept ImportError as error: print(type(error).__name__, error)",
    )
    assert "otel-pgpool[binary]" in shown


def test_imports_with_a_psycopg2_and_no_sdk(bare_python: Path) -> None:
    """Beside a psycopg2 it needs only OpenTelemetry's API: no SDK is installed, none is imported."""
    install(bare_python, "psycopg2-binary")
    shown = run(
        bare_python,
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
