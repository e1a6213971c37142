"""The throw-away server itself."""

from __future__ import annotations

import os
import pwd
import secrets
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from otel_pgpool.demo.postgres import PostgresError, PostgresServer, find_binaries
from tests.support.database import ask, connects
from tests.support.processes import find_version
from tests.support.servers import ClonedServer
from tests.support.urls import url_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import StopMode

# Another program with a server, killed in several ways: it tells where its server lives, then waits.
PROGRAM = """
import time
from otel_pgpool.demo.postgres import PostgresServer
with PostgresServer() as server:
    print(server.socket_dir, server.pid, flush=True)
    time.sleep(60)
"""


def exists(pid: int) -> bool:
    """Whether a process lives; one that is dead and not yet collected by its parent does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()[:1] not in {"", "Z"}


def test_version_is_the_servers(server: PostgresServer, admin: connection) -> None:
    """The version in the header is that of the server which runs."""
    assert server.pid is not None
    assert str(ask(admin, "show server_version")).startswith(find_version())


def test_tcp_and_unix_socket(server: PostgresServer) -> None:
    """It is reached on 127.0.0.1 and through the socket in its folder, and by nothing else."""
    over_socket = psycopg2.connect(host=server.socket_dir, port=server.port, user="postgres", dbname="postgres")
    assert ask(over_socket, "select inet_server_addr()") is None
    assert ask(over_socket, "show listen_addresses") == "127.0.0.1"
    over_socket.close()
    assert connects(server.dsn)


def test_settings(admin: connection) -> None:
    """Settings of the caller's stand beside those that make it fast."""
    assert ask(admin, "show max_connections") == "200"
    assert ask(admin, "show fsync") == "off"


def test_setting_with_a_quote(own_server: PostgresServer) -> None:
    """A value may hold a quote."""
    with ClonedServer(settings={"application_name": "it's"}) as other:
        conn = psycopg2.connect(other.dsn)
        assert ask(conn, "show application_name") == "it's"
        conn.close()
        assert other.port != own_server.port


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_restart_keeps_the_port(own_server: PostgresServer, mode: StopMode) -> None:
    """A stopped server is not reached; started again, it is, under the same DSN and with its data."""
    conn = psycopg2.connect(own_server.dsn)
    with conn, conn.cursor() as cur:
        cur.execute("create table kept ()")
    conn.close()
    dsn = own_server.dsn
    own_server.stop(mode)
    assert own_server.pid is None
    assert not connects(dsn)
    own_server.start()
    assert own_server.dsn == dsn
    conn = psycopg2.connect(dsn)
    assert ask(conn, "select to_regclass('kept')") == "kept"
    conn.close()


def test_starts_again_after_a_kill(own_server: PostgresServer) -> None:
    """A server whose postmaster was killed outright can be started again."""
    assert own_server.pid is not None
    conn = psycopg2.connect(own_server.dsn)
    processes = ask(conn, "select array_agg(pid) from pg_stat_activity")
    assert isinstance(processes, list)
    os.kill(own_server.pid, signal.SIGKILL)
    assert wait_until(lambda: own_server.pid is None)
    assert wait_until(lambda: not any(exists(pid) for pid in processes))  # as long they have its shared memory
    conn.close()
    own_server.start()
    assert connects(own_server.dsn)


def test_frozen_backend(own_server: PostgresServer) -> None:
    """A backend that is stopped with SIGSTOP holds up a fast stop, which says so, and not an immediate one."""
    conn = psycopg2.connect(own_server.dsn)
    os.kill(conn.info.backend_pid, signal.SIGSTOP)
    with pytest.raises(PostgresError, match=r"did not stop within 0\.2 s \(mode 'fast'\)"):
        own_server.stop("fast", timeout=0.2)
    own_server.stop("immediate")
    assert own_server.pid is None
    conn.close()


def test_a_given_password() -> None:
    """It is asked for, and never shown in a repr."""
    with PostgresServer(password=f"it's:a/p@ss wörd{secrets.token_hex(16)}") as server:
        assert connects(server.dsn)
        assert not connects(url_of(server.dsn, password="wrong"))
        assert "p@ss" not in repr(server)


def test_nobody_else_gets_in(server: PostgresServer) -> None:
    """Over TCP without the password nobody is let in; over the socket the account that started it is, and no other."""
    where = {"port": server.port, "user": "postgres", "dbname": "postgres"}
    refused = r"no password supplied|password authentication failed"
    for password in ("", "postgres"):
        with pytest.raises(psycopg2.OperationalError, match=refused):
            psycopg2.connect(host="127.0.0.1", password=password, **where)
    with pytest.raises(psycopg2.OperationalError, match=refused):
        psycopg2.connect(host=server.socket_dir, **{**where, "user": "somebody"})
    for folder in (Path(server.socket_dir), Path(server.socket_dir, "data")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("name", ["daemon", "nobody"])
def test_another_user_of_the_machine(server: PostgresServer, name: str) -> None:
    """Neither TCP nor the socket takes another account for the superuser, not even the one that the server runs as."""
    account = pwd.getpwnam(name)
    where = {"port": server.port, "user": "postgres", "dbname": "postgres", "password": ""}
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            for host in ("127.0.0.1", server.socket_dir):
                try:
                    psycopg2.connect(host=host, **where)
                except psycopg2.OperationalError:
                    os.write(write, b"refused ")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"refused refused "
    os.close(read)


def test_each_server_has_a_password_of_its_own(server: PostgresServer, own_server: PostgresServer) -> None:
    """One server's password opens no other."""
    password = parse_dsn(server.dsn)["password"]
    assert len(password) >= 32
    assert not connects(url_of(own_server.dsn, password=password))


def test_where_the_password_is_not(server: PostgresServer) -> None:
    """It stands in the DSN and nowhere else: no file, no process's arguments or environment, no repr."""
    password = parse_dsn(server.dsn)["password"]
    assert password not in repr(server)
    shown = subprocess.run(["ps", "axeww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(server.socket_dir) in shown
    assert password not in shown
    files = [path for path in Path(server.socket_dir).rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if password.encode() in path.read_bytes()] == []


def test_an_account_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the account has no name, as in some containers, the socket asks for the password too."""
    monkeypatch.setattr("otel_pgpool.demo.postgres._own_name", lambda: None)
    with PostgresServer() as server:
        assert connects(server.dsn)
        assert connects(make_dsn(server.dsn, host=server.socket_dir))
        assert not connects(make_dsn(host=server.socket_dir, port=server.port, user="postgres", dbname="postgres"))


def test_bad_setting_shows_the_log() -> None:
    """A server that does not start says why, in the words of its log, and leaves no folder."""
    server = ClonedServer(settings={"max_connections": "many"})
    with pytest.raises(PostgresError, match='invalid value for parameter "max_connections": "many"') as caught:
        server.start()
    folder = str(caught.value).split('configuration file "')[1].split("/data/")[0]
    assert not Path(folder).exists()


def test_no_server_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no PostgreSQL, the error says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PostgresError, match=r"otel-pgpool\[demo\]"):
        find_binaries()


def test_bad_mode() -> None:
    """An unknown way to stop is refused with what is accepted."""
    with pytest.raises(ValueError, match="mode must be one of 'smart', 'fast', 'immediate', not 'slow'"):
        PostgresServer().stop("slow")  # type: ignore[arg-type]


def test_not_started() -> None:
    """A server that was not started has no DSN, and closing it is harmless."""
    server = PostgresServer()
    server.close()
    with pytest.raises(PostgresError, match="has not been started"):
        _ = server.dsn


def test_long_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the temporary folder's name is too long for a socket's path, another is taken."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with PostgresServer() as server:
        assert not server.socket_dir.startswith(str(deep))
        assert connects(server.dsn)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(how: signal.Signals) -> None:
    """However the program ends, neither process nor folder stays."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        folder, pid = program.stdout.readline().decode().split()
        assert exists(int(pid))
        program.send_signal(how)
        program.communicate()
    if how is signal.SIGINT:  # an orderly end: nothing to wait for
        assert not Path(folder).exists()
    assert wait_until(lambda: not Path(folder).exists() and not exists(int(pid)))


def test_forked_child_does_not_hold_up_the_end() -> None:
    """A child forked meanwhile, which holds copies of all that is open, does not keep the server from closing."""
    read, write = os.pipe()
    with ClonedServer() as server:
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        folder = server.socket_dir
    assert not Path(folder).exists()
    os.close(read)
    os.close(write)
    os.waitpid(child, 0)
