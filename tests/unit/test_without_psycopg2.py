"""Where psycopg2 is not installed: the instrumentation of other drivers' pools works, the pool names what it needs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.scripts import run

BLOCKED = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "psycopg2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def told_by(program: str) -> Any:
    """Run a program without psycopg2; return what it prints last."""
    done = run(BLOCKED + program)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "module",
    [
        "otel_pgpool",
        "otel_pgpool.errors",
        "otel_pgpool.driver.target",
        "otel_pgpool.driver.messages",
        "otel_pgpool.driver.proxy",
        "otel_pgpool.observer",
        "otel_pgpool.telemetry",
        "otel_pgpool.instrumentation",
        "otel_pgpool.instrumentation.adapters.asyncpg.monitor",
        "otel_pgpool.instrumentation.adapters.base",
        "otel_pgpool.instrumentation.adapters.monitor",
        "otel_pgpool.instrumentation.adapters.psycopg_pool.monitor",
        "otel_pgpool.instrumentation.adapters.sqlalchemy.monitor",
        "otel_pgpool.instrumentation.fair_queue",
        "otel_pgpool.instrumentation.session",
        "otel_pgpool.pool.monitors",
        "otel_pgpool.runtime.deadline",
        "otel_pgpool.otlp",
        "otel_pgpool.cli.command",
    ],
)
def test_imports(module: str) -> None:
    """Nothing on the way to these modules needs psycopg2."""
    assert told_by(f"import {module}\nprint(json.dumps('psycopg2' in sys.modules))") is False


def test_what_needs_psycopg2_names_the_extra() -> None:
    """An ImportError at the first use of the pool, not before."""
    told = told_by("""
import otel_pgpool
told = {}
for name in ("ConnectionPool", "reset_session"):
    try:
        getattr(otel_pgpool, name)
    except ImportError as error:
        told[name] = [type(error).__name__, error.name, str(error)]
print(json.dumps(told))
""")
    assert [each[:2] for each in told.values()] == [["ModuleNotFoundError", "psycopg2"]] * 2
    assert all(text.startswith(f"{name} needs psycopg2: ") for name, (_type, _name, text) in told.items())
    assert all("pip install 'otel-pgpool[binary]'" in text for _type, _name, text in told.values())


def test_all_names_at_once_name_the_extra() -> None:
    """``import *`` raises the same error: to leave the pool out would be a NameError at its first use."""
    told = told_by("""
try:
    from otel_pgpool import *
except ImportError as error:
    print(json.dumps([type(error).__name__, error.name, str(error)]))
""")
    assert told[:2] == ["ModuleNotFoundError", "psycopg2"]
    assert told[2].startswith("ConnectionPool needs psycopg2: ")
    assert "pip install 'otel-pgpool[binary]'" in told[2]


def test_errors_are_one_object() -> None:
    """The package, the module and the telemetry share the classes, as they do where psycopg2 is installed."""
    told = told_by("""
import otel_pgpool
from otel_pgpool import errors, telemetry
from otel_pgpool.instrumentation import tracker
print(json.dumps([
    otel_pgpool.PoolTimeout is errors.PoolTimeout is telemetry.PoolTimeout is tracker.PoolTimeout,
    [each.__name__ for each in otel_pgpool.PoolTimeout.__mro__],
]))
""")
    assert told == [True, ["PoolTimeout", "PoolError", "Exception", "BaseException", "object"]]


def test_an_instrumented_pool() -> None:
    """The tracker of another driver's pool counts, and reports errors by their SQLSTATE."""
    told = told_by("""
from otel_pgpool.instrumentation.adapters.base import Levels, PoolAdapter
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.types import PoolErrorType

class Target:
    address, port, namespace, name, public = "db", 5432, "shop", "db:5432/shop", ()

class Adapter(PoolAdapter):
    install = uninstall = forget_inherited = None
    def levels(self, pool):
        return Levels(0, 2, 1, 0, None)
    def target(self, pool):
        return Target

class Pool: pass
class Connection: pass
class Error(Exception):
    sqlstate = "57014"

session = InstrumentationSession(InstrumentationOptions.of(environ={}))
pool, conn = Pool(), Connection()
tracker = session.track(pool, Adapter())
tracker.connected(0.0, conn)
held = tracker.start(())
tracker.acquired(held, conn)
failed, late = tracker.start(()), tracker.start(())
tracker.failed(failed, Error())
tracker.failed(late, Error(), PoolErrorType.TIMEOUT)
tracker.released(held)
stats = tracker.stats()
print(json.dumps([failed.error_type, late.error_type, stats.name, stats.timeouts, stats.errors, stats.checkouts]))
session.end()
""")
    assert told == ["57014", "timeout", "db:5432/shop", 1, 1, {"idle": 0, "queued": 0, "new": 1}]


def test_a_monitored_pool() -> None:
    """The session of a long hold is asked for over another driver's connection, and its state reported."""
    told = told_by("""
import threading
from otel_pgpool.instrumentation.adapters.base import Levels, PoolAdapter
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.instrumentation.tracker import PoolTracker

class Target:
    address, port, namespace, name, public = "db", 5432, "shop", "db:5432/shop", ()

asked = threading.Event()
class Monitor:
    pid, local_port = 1, 0
    def query(self, statement):
        asked.set()
        return '{"backend": 1, "client_port": null, "sessions": []}'
    def close(self): pass

class Adapter(PoolAdapter):
    install = uninstall = forget_inherited = None
    def levels(self, pool):
        return Levels(0, 2, 1, 0, None)
    def target(self, pool):
        return Target
    def monitor_connect(self, pool):
        return lambda chosen: Monitor()

class Pool: pass
environ = {"OTEL_PGPOOL_DATABASE_STATE": "all"}
session = InstrumentationSession(InstrumentationOptions.of(long_hold=0.01, environ=environ))
pool, conn = Pool(), Pool()
tracker = session.track(pool, Adapter())
tracker.acquired(tracker.start(()), conn)
print(json.dumps([asked.wait(10), "psycopg2" in sys.modules, "psycopg" in sys.modules, "asyncpg" in sys.modules]))
session.end()
""")
    assert told == [True, False, False, False]


def test_targets() -> None:
    """Parameters describe a target."""
    told = told_by("""
from otel_pgpool.driver.target import target_of_parameters
parameters = {"host": "db,other", "port": "5433", "user": "app", "dbname": "shop"}
read = target_of_parameters(parameters)
refused = target_of_parameters({**parameters, "host": "postgresql://app:hunter2@db/shop"})
print(json.dumps([read.name, read.port, sorted(read.public & {"db", "app"}), refused.name]))
""")
    assert told == ["db:5433,other:5433/shop", 5433, ["app", "db"], "unknown"]
