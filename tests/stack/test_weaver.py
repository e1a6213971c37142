"""The registry of the signals as OpenTelemetry Weaver judges it, and what it says to a run of the demo.

`WEAVER` names the program, and `SEMCONV` the folder `model` of the semantic conventions of the version in the manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2.extensions import parse_dsn

from tests.support.documents import ROOT
from tests.support.external_programs import HOST, free_ports
from tests.support.signal_registry import FOLDER
from tests.support.urls import url_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_pgpool.demo.postgres import PostgresServer

WEAVER, SEMCONV = os.environ.get("WEAVER", ""), os.environ.get("SEMCONV", "")
DEMO = (sys.executable, "-c", "import sys; from otel_pgpool.cli import main; sys.exit(main())", "demo")

pytestmark = [
    pytest.mark.skipif(not (WEAVER and SEMCONV), reason="WEAVER and SEMCONV do not name Weaver and the conventions"),
    pytest.mark.timeout(240),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Provide a copy of the registry that finds the conventions on this machine."""
    folder = tmp_path / "registry"
    shutil.copytree(FOLDER, folder)
    manifest = folder / "manifest.yaml"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    local = [f"    registry_path: {SEMCONV}" if line.strip().startswith("registry_path") else line for line in lines]
    manifest.write_text("\n".join(local), encoding="utf-8")
    return folder


@pytest.mark.parametrize("options", [[], ["--v2"]])
def test_check(copy: Path, options: list[str]) -> None:
    """Weaver resolves the registry, in both versions of its schema, and all that is imported exists."""
    command = [WEAVER, "registry", "check", "--registry", copy, *options]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = checked.stdout + checked.stderr
    assert checked.returncode == 0, told
    assert "matched nothing" not in told


@contextmanager
def live_check(registry: Path, out: Path) -> Iterator[str]:
    """Run Weaver as the receiver of what a program exports; its verdict is good, or the test fails."""
    port, admin = free_ports(2)
    addresses = ["--otlp-grpc-address", HOST, "--otlp-grpc-port", str(port), "--admin-port", str(admin)]
    command = [WEAVER, "registry", "live-check", "--registry", registry, *addresses, "--inactivity-timeout", "60"]
    with subprocess.Popen([*command, "--format", "json", "--output", out], cwd=ROOT) as process:
        try:
            assert wait_until(lambda: process.poll() is not None or is_open(port), 30)
            yield f"http://{HOST}:{port}"
            with urllib.request.urlopen(f"http://{HOST}:{admin}/stop", data=b"") as answer:
                answer.read()
            assert process.wait(200) == 0, sorted(violations(json.loads((out / "live_check.json").read_text())))
        finally:
            process.kill()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def violations(found: Any) -> set[str]:
    """Return the messages of all violations in a report."""
    if isinstance(found, dict):
        own = {found["message"]} if found.get("level") == "violation" else set()
        return own.union(*map(violations, found.values()))
    return set().union(*map(violations, found)) if isinstance(found, list) else set()


def test_live_check(copy: Path, tmp_path: Path, server: PostgresServer) -> None:
    """Nothing that the demo exports violates the registry, the resource and the shop's own spans included."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGPASSWORD": parse_dsn(server.dsn)["password"]}
    with live_check(copy, tmp_path / "out") as endpoint:
        options = ["--seconds", "3", "--dsn", url_of(server.dsn, password=None), "--endpoint", endpoint]
        done = subprocess.run([*DEMO, *options], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
