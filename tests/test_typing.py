"""The typed API, as a strict type checker sees it in a program that uses the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import otel_pgpool

ROOT = Path(__file__).parents[1]
USES = sorted((ROOT / "tests" / "typing").glob("*.py"))


@pytest.mark.timeout(180)
def test_the_api_is_typed() -> None:
    """Every use in ``tests/typing`` passes ``mypy --strict``, and every mistake in it is found."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *USES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_typed_uses_are_complete() -> None:
    """Every public name, and every public method and property of the pool, is used there."""
    nodes = [node for path in USES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert set(otel_pgpool.__all__) <= names | attributes
    public = {name for name in dir(otel_pgpool.ConnectionPool) if not name.startswith("_")}
    described_to_observers = {"address", "port", "namespace", "long_hold"}
    assert public - described_to_observers <= attributes
