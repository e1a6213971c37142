"""The instrumentation on another SQLAlchemy than the one that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RELEASE = "1.4"
FOLDER = Path(sys.prefix) / f"sqlalchemy-{RELEASE}"
ROOT = Path(__file__).parents[3]
TESTS = Path(__file__).with_name("test_sqlalchemy.py")
"""What an adapter has to do; `make versions` runs every test of engines."""
ENDS_WITHIN = 120  # seconds


@pytest.mark.timeout(ENDS_WITHIN)
def test_on_the_older_sqlalchemy(capsys: pytest.CaptureFixture[str]) -> None:
    """Engines of SQLAlchemy 1.4 are observed."""
    if not FOLDER.is_dir():
        missing = f"{FOLDER} is missing, and SQLAlchemy {RELEASE} stays untested: `make test` installs it"
        if "MAKELEVEL" in os.environ:
            pytest.fail(missing)
        with capsys.disabled():
            print(f"\n{missing}")
        pytest.skip(missing)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")])),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )

    version = run("-c", "import sqlalchemy; print(sqlalchemy.__version__)").stdout
    assert version.startswith(f"{RELEASE}.")
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
