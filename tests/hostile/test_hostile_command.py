"""Hostile input of the command: a server that says what it likes, and passwords among its arguments and variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hostile import INJECTED, WRONG, assert_nothing_secret
from tests.support.hostile_server import HostileServer, error, fails, login, notice, says

COMMAND = Path(sys.executable).parent / "otel-pgpool"
LONGEST_OUTPUT = 25_000


def run(folder: Path, *arguments: str, **variables: str) -> str:
    """Run the command in a folder of its own; what it has written to both streams."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "OTEL_"))}
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "otel-pgpool"),
            "demo",
            "--seconds",
            "4",
            "--out",
            str(folder / "out"),
            *arguments,
        ],
        capture_output=True,
        cwd=folder,
        env={**inherited, "TERM": "xterm", **variables},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return (done.stdout + done.stderr).decode()


SAYS = {
    "refusal": says(error(f"s3cr3t{INJECTED}")),
    "detail": says(error("s3cr3t", D=f"s3cr3t{INJECTED}")),
    "long refusal": says(error("s3cr3t" * 4_000)),
    "no protocol": says(b"HTTP/1.1 400 \x1b[2Js3cr3t\r\n\r\n"),
    "statement": fails(error(f"s3cr3t{INJECTED}", state="57014", severity="ERROR")),
    "long statement": fails(error("s3cr3t\x1b[2J" * 200_000, state="57014", severity="ERROR")),
    "notices at login": says(notice(f"s3cr3t{INJECTED}") * 20, error("s3cr3t")),
    "notices after it": says(login(), notice(f"s3cr3t{INJECTED}") * 20_000),
}


@pytest.mark.parametrize("answer", SAYS)
def test_a_hostile_server(tmp_path: Path, answer: str) -> None:
    """It may say anything to a person; no control character of it reaches the terminal, and no flood does."""
    with HostileServer(SAYS[answer]) as server:
        written = run(tmp_path, "--dsn", server.dsn)
    assert written.replace("\n", "").isprintable()
    assert len(written) < LONGEST_OUTPUT


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("--dsn", f"host=127.0.0.1 port=1 password='{WRONG}'"), {}),
        (("--dsn", "postgresql://app:s3cr3t@w0rd@127.0.0.1:1/shop"), {}),
        (("--dsn", "postgresql://app@127.0.0.1:1/shop&password=s3cr3t"), {}),
        (("--dsn=postgresql://app:s3cr3t@127.0.0.1:1/shop",), {}),
        (("--dsm", "postgresql://app:s3cr3t@127.0.0.1:1/shop"), {}),
        (("--seconds", "postgresql://app:s3cr3t@127.0.0.1:1/shop"), {}),
        (("--endpoint", "http://me:s3cr3t@127.0.0.1:1"), {}),
        (("--endpoint", "http://127.0.0.1:1/?api_key=s3cr3t"), {}),
        (("--endpoint", "http://127.0.0.1:1/s3cr3t"), {}),
        (("--dsn", "host=127.0.0.1 port=1"), {"PGPASSWORD": "s3cr3t"}),
        (("--dsn", "host=127.0.0.1 port=1"), {"PGHOST": "postgresql://app:s3cr3t@db"}),
        (("--dsn", "host=127.0.0.1 port=1"), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1/?api_key=s3cr3t"}),
        (("--dsn", "host=127.0.0.1 port=1"), {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cr3t\x1b[2J"}),
    ],
    ids=range(13),
)
def test_passwords(tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    """A password, a token and a key are shown in no complaint."""
    written = run(tmp_path, *arguments, **variables)
    assert written.replace("\n", "").isprintable()
    assert_nothing_secret(written)
