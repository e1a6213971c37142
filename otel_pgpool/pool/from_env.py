"""The arguments of a pool that ``ConnectionPool.from_env`` reads from the environment."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool import environment
from otel_pgpool.config import environment_seconds, validate_name
from otel_pgpool.driver.dsn import READABLE_DSN, parse
from otel_pgpool.driver.target import VARIABLES
from otel_pgpool.runtime.text import printable
from otel_pgpool.validation import MOST_CONNECTIONS, invalid_option, validate_bounds, validate_integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.environment import Variable

logger = logging.getLogger("otel_pgpool")

TARGETS = ("host", "hostaddr", "dbname", "service")
"""Parameters of libpq one of which is needed if there is no DSN.

Otherwise, a program without configuration would connect to whatever database is on its machine.
"""

TARGET_VARIABLES = (*(VARIABLES[key] for key in TARGETS if key in VARIABLES), "PGSERVICE")
"""The variables from which libpq reads them."""

DRIVER_OF_SQLALCHEMY = re.compile(r"(postgres(?:ql)?)\+\w+(?=://)")
"""The beginning of a URL of SQLAlchemy, with the name of a driver, which libpq does not know."""


class PoolVariable(NamedTuple):
    """An environment variable for options of a pool."""

    variable: Variable
    names: tuple[str, ...]
    """The names of its option; the first one is used."""
    read: Callable[[Variable, Mapping[str, str]], Any]


def _whole(least: int, most: int | None = None) -> Callable[[Variable, Mapping[str, str]], int]:
    """Return a function that reads a whole number."""

    def read(variable: Variable, environ: Mapping[str, str]) -> int:
        text = environ.get(variable.name, "").strip() or variable.default
        number = int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else text
        return validate_integer(variable.name, number, least=least, most=most)

    return read


def _seconds_above_0(variable: Variable, environ: Mapping[str, str]) -> float:
    seconds = environment_seconds(variable, environ)
    if not seconds:
        raise invalid_option(variable.name, environ[variable.name], "a number of seconds above 0 (inf allowed)")
    return seconds


def _name(variable: Variable, environ: Mapping[str, str]) -> str | None:
    return validate_name(variable.name, environ[variable.name].strip())


POOL_VARIABLES = (
    PoolVariable(environment.MINCONN, ("minconn", "min_size"), _whole(0)),
    PoolVariable(environment.MAXCONN, ("maxconn", "max_size"), _whole(1, MOST_CONNECTIONS)),
    PoolVariable(environment.NAME, ("name",), _name),
    PoolVariable(environment.MAX_WAITING, ("max_waiting",), _whole(0)),
    PoolVariable(environment.MAX_ATTEMPTS, ("max_attempts", "max_retries"), _whole(1)),
    PoolVariable(environment.MAX_LIFETIME, ("max_lifetime",), _seconds_above_0),
    PoolVariable(environment.MAX_IDLE, ("max_idle",), _seconds_above_0),
    PoolVariable(environment.KEEPALIVE, ("keepalive",), _seconds_above_0),
    PoolVariable(environment.RECONNECT_TIMEOUT, ("reconnect_timeout",), environment_seconds),
)
"""The variables that only `from_env` reads. The constructor itself reads those of ``timeout`` and ``long_hold``."""

PREFIX = "OTEL_PGPOOL_"
OTHER_NAMES = {PREFIX + name.upper(): each.variable.name for each in POOL_VARIABLES for name in each.names[1:]}
"""Variables that do not exist, named by an option's other name, and the variable that does."""

SIMILARITY = 0.85
"""How similar an unknown variable has to be to a known one, to count as a misspelling of it."""


def warn_of_unknown(environ: Mapping[str, str]) -> None:
    """Log each variable that looks as if it were one of this package, and is none. Its value is not shown."""
    known = {variable.name for variable in environment.ENVIRONMENT}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            meant = OTHER_NAMES.get(name) or next(iter(get_close_matches(name, known, 1, SIMILARITY)), None)
            hint = f": did you mean {meant}?" if meant else ""
            logger.warning("%s is no variable of otel_pgpool, and is ignored%s", printable(name), hint)


def arguments_from(environ: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `ConnectionPool`: those that are given, and those of the environment for the others.

    Args:
        environ: the environment.
        given: the program's arguments.

    Raises:
        ValueError: a variable is invalid, or no database is named; the message contains the name of the variable, and
            nothing that may be a password.
    """
    found: dict[str, Any] = {}
    sources = {}
    for variable, names, read in POOL_VARIABLES:
        if any(name in given for name in names):
            continue
        if variable.default or environ.get(variable.name, "").strip():
            found[names[0]] = read(variable, environ)
            sources[names[0]] = variable.name
    if sources.keys() & {"minconn", "maxconn"}:  # the constructor compares others
        sizes = {**{sources.get(name, name): value for name, value in found.items()}, **given}
        lower, upper = (
            next(name for name in (sources.get(names[0]), *names) if name in sizes)
            for names in (("minconn", "min_size"), ("maxconn", "max_size"))
        )
        validate_bounds(lower, sizes[lower], upper, sizes[upper])
    extra = given.get("connect_kwargs")
    connect_arguments = {**given, **extra} if isinstance(extra, Mapping) else given
    if "dsn" not in connect_arguments:
        dsn = environ.get(environment.DATABASE_URL.name, "").strip()
        if dsn:
            found["dsn"] = _readable(dsn)
        else:
            _require_target(environ, connect_arguments)
    return {**found, **given}


def _readable(dsn: str) -> str:
    """Return a DSN of the environment as libpq reads it."""
    dsn = DRIVER_OF_SQLALCHEMY.sub(r"\1", dsn, count=1) if DRIVER_OF_SQLALCHEMY.match(dsn) else dsn
    try:
        parse((dsn,), {})
    except ValueError as error:
        if str(error).startswith("PG"):  # a variable of libpq is invalid
            raise
        raise ValueError(f"{environment.DATABASE_URL.name}: {error}") from None
    return dsn


def _require_target(environ: Mapping[str, str], connect_arguments: Mapping[str, Any]) -> None:
    """Check that the program or libpq's variables name a server or a database."""
    if not any(connect_arguments.get(key) for key in TARGETS) and not any(
        environ.get(name) for name in TARGET_VARIABLES
    ):
        variables = ", ".join(TARGET_VARIABLES)
        raise ValueError(
            f"{environment.DATABASE_URL.name} must be set to {READABLE_DSN}, or one of libpq's variables {variables}"
        )
