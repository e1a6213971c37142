"""Whether a server that lives has refused a connection, told by what psycopg2 raised for it."""

from __future__ import annotations

import psycopg2
import pytest
from psycopg2 import errors

from otel_pgpool.driver.session import is_refusal

AT = 'connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    "message",
    [
        f'{AT}FATAL:  database "shop" does not exist\n',
        f'{AT}FATAL:  password authentication failed for user "shop"\n' * 2,
        f'{AT}FATAL:  role "shop" is not permitted to log in\n',
        f'{AT}FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "shop", database "shop", no encryption\n',
        f'{AT}FATAL:  permission denied for database "shop"\nDETAIL:  User does not have CONNECT privilege.\n',
        f'{AT}FATAL:  database "shop" is not currently accepting connections\n',
        f'{AT}FATAL:  role "recovery could not timeout" does not exist\n',
        f'{AT}FATAL:  unrecognized configuration parameter "speed"\n',
        f"{AT}FATAL:  unsupported frontend protocol 3.9999: server supports 3.0 to 3.2\n",
        f"{AT}FATAL:  connection requires a valid client certificate\n",
        f"{AT}FATAL:  no such database: shop\n",
        f"{AT}FATAL:  no such user: shop\n",
        f"{AT}fe_sendauth: no password supplied\n",
        f"{AT}server does not support SSL, but SSL was required\n",
        f'{AT}authentication method requirement "!password" failed: server requested a cleartext password\n',
        'connection to server at "::1", port 5432 failed: FATAL:  role "shop" does not exist\n',
        'connection to server on socket "/tmp/.s.PGSQL.5432" failed: FATAL:  role "shop" does not exist\n',
        'FATAL:  database "shop" does not exist\n',
        f"{AT}FATAL:  Datenbank \u00bbshop\u00ab existiert nicht\n",
        f"{AT}FATAL:  la base de donn\u00e9es \u00ab shop \u00bb n'existe pas\n",
        f'{AT}\u0412\u0410\u0416\u041d\u041e:  \u0440\u043e\u043b\u044c "shop"\n',
        "Verbindung zum Server fehlgeschlagen: FATAL:  Rolle \u00bbshop\u00ab existiert nicht",
        f'{AT}Connection refused\n\tIs the server running on that host?\n{AT}FATAL:  database "shop" does not exist\n',
    ],
)
def test_refused(message: str) -> None:
    """The server lives: a role, a password, a database or a parameter is wrong, in whatever language it says so."""
    assert is_refusal(psycopg2.OperationalError(message))


@pytest.mark.parametrize(
    "message",
    [
        f"{AT}Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n",
        f"{AT}timeout expired\n",
        f"{AT}server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally\n",
        'could not translate host name "db" to address: Name or service not known\n',
        'connection to server on socket "/tmp/.s.PGSQL.5432" failed: No such file or directory\n',
        f"{AT}FATAL:  the database system is starting up\n",
        f"{AT}FATAL:  the database system is shutting down\n",
        f"{AT}FATAL:  the database system is in recovery mode\n",
        f'{AT}FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is "disabled".\n',
        f"{AT}FATAL:  sorry, too many clients already\n",
        f'{AT}FATAL:  too many connections for role "shop"\n',
        f'{AT}FATAL:  too many connections for database "shop"\n',
        f"{AT}FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute\n",
        f'{AT}FATAL:  remaining connection slots are reserved for the "pg_use_reserved_connections" role\n',
        f"{AT}FATAL:  les connexions restantes sont pour \u00ab pg_use_reserved_connections \u00bb\n",
        f"{AT}FATAL:  terminating connection due to administrator command\n",
        f"{AT}FATAL:  canceling authentication due to timeout\n",
        f"{AT}FATAL:  no more connections allowed (max_client_conn)\n",
        f"{AT}FATAL:  server login has been failing, cached error: connect failed (server_login_retry)\n",
        f"{AT}FATAL:  pgbouncer cannot connect to server\n",
        f"{AT}FATAL:  le syst\u00e8me de bases de donn\u00e9es se lance\n",
        f"{AT}FATAL:  d\u00e9sol\u00e9, trop de clients sont d\u00e9j\u00e0 connect\u00e9s\n",
        "FATAL:  the database system is starting up\n",
        "",
    ],
)
def test_not_to_be_had(message: str) -> None:
    """Nobody answered, or whoever did can serve nobody now."""
    assert not is_refusal(psycopg2.OperationalError(message))


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        *((state, True) for state in ("28P01", "28000", "3D000", "42501", "55000", "42P01")),
        *((state, False) for state in ("53300", "57P03", "57P01", "08P01", "08006", "XX000")),
    ],
)
def test_by_its_sqlstate(state: str, refused: bool) -> None:
    """Where a statement on the new connection has failed psycopg2 knows the state, and the text does not matter."""
    error = errors.lookup(state)('connection failed: FATAL:  database "shop" does not exist')
    error.__setstate__({"pgcode": state})
    assert error.pgcode == state
    assert is_refusal(error) is refused


@pytest.mark.parametrize("error", [None, ValueError('x failed: FATAL:  role "a" does not exist'), KeyboardInterrupt()])
def test_of_others(error: BaseException | None) -> None:
    """What psycopg2 has not raised says nothing of the server."""
    assert not is_refusal(error)
