"""The map of the package: each module imports only what stands before it, and few know of psycopg2 or OpenTelemetry."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "otel_pgpool"
ROOT = Path(__file__).parents[1]

MAP = (
    # values and names
    "_version",
    "_texts",
    "_unpatched",
    "_clock",
    "_guard",
    "_fork",
    "_proxy",
    "_config",
    "_errors",
    "_observer",
    # mechanics: the only lock, no I/O
    "_checkout",
    "_slot",
    "_queue",
    "_members",
    "_core",
    "_collector",
    # psycopg2: where to connect, how to settle and bound what it does
    "_known_texts",
    "_messages",
    "_refusal",
    "_description",
    "_wakeup",
    "_deadline",
    "_opening",
    "_exposure",
    "_target",
    "_connection",
    "_notices",
    "_session",
    "_settlement",
    # the steps of a checkout and the background work
    "_liveness",
    "_waiting",
    "_block",
    "_connectors",
    "_level",
    "_watcher",
    "_maintenance",
    "_registry",
    # what is told of it
    "telemetry.names",
    "telemetry.context",
    "telemetry.error_types",
    "telemetry.logs",
    "telemetry.series",
    "telemetry.readings",
    "telemetry.accounts",
    "telemetry.metrics",
    "telemetry.frames",
    "telemetry.stacks",
    "telemetry.spans",
    "telemetry",
    # pools that are not ours
    "instrumentation.settings",
    "instrumentation.lenient",
    "instrumentation.driver",
    "instrumentation.places",
    "instrumentation.turns",
    "instrumentation.kind",
    "instrumentation.holds",
    "instrumentation.connects",
    "instrumentation.ledger",
    "instrumentation.hook",
    "instrumentation.psycopg2_arguments",
    "instrumentation.psycopg2_request",
    "instrumentation.psycopg2_outcomes",
    "instrumentation.psycopg2_quiet",
    "instrumentation.psycopg2_pool",
    "instrumentation.sqlalchemy_engine",
    "instrumentation.sqlalchemy_fork",
    "instrumentation.sqlalchemy_pool",
    "instrumentation",
    # the public side
    "_pool",
    "",
    "_delivery",
    "otlp",
    # the command
    "cli",
)
"""Imports run from below to above. The modules of ``cli`` count as one; the empty name is the package itself."""

MECHANICS = MAP[: MAP.index("_core") + 1]
KNOW_PSYCOPG2 = {
    "_errors",
    "_refusal",
    "_description",
    "_exposure",
    "_target",
    "_connection",
    "_deadline",
    "_opening",
    "_pool",
    "telemetry.error_types",
    "instrumentation.driver",
    "instrumentation.turns",
    "instrumentation.psycopg2_request",
    "instrumentation.psycopg2_outcomes",
    "instrumentation.psycopg2_quiet",
    "instrumentation.psycopg2_pool",
    "instrumentation.sqlalchemy_pool",
}
KNOW_OPENTELEMETRY = ("telemetry", "instrumentation", "otlp", "_delivery", "cli")
PSYCOPG2_FROM_AFAR = {"_errors"}
"""The one of the mechanics that imports psycopg2: what the pool raises is a ``psycopg2.pool.PoolError``."""


class Imports(ast.NodeVisitor):
    """Every module that a file imports when it runs, in functions too; what is for type checkers alone is left out."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int]] = []

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            self.found.append((inner if is_module(inner) else str(node.module), node.lineno))


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of this package."""
    path = ROOT.joinpath(*name.split("."))
    return name.startswith(f"{PACKAGE}.") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def modules() -> Iterator[tuple[str, Path]]:
    """Each module of the package, without the package's name, and its file."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    visitor = Imports()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return visitor.found


def on_the_map(module: str) -> str:
    """Return the map's entry for a module."""
    return "cli" if module.partition(".")[0] == "cli" else module


def knows(module: str, library: str) -> bool:
    return any(name.partition(".")[0] == library for name, _line in imports(dict(modules())[module]))


def test_the_map_shows_every_module_once() -> None:
    """A new file must be given its place; one that is gone must leave the map."""
    assert len(MAP) == len(set(MAP))
    assert {on_the_map(module) for module, _path in modules()} == set(MAP)


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0] or PACKAGE) for found in modules()])
def test_imports_run_one_way(module: str, path: Path) -> None:
    """What a module imports stands before it on the map."""
    place = MAP.index(on_the_map(module))
    against = []
    for name, line in imports(path):
        if name.partition(".")[0] != PACKAGE:
            continue
        entry = on_the_map(name.removeprefix(PACKAGE).removeprefix("."))
        if MAP.index(entry) > place or (entry == MAP[place] and entry != "cli"):
            against.append(f"{path}:{line} imports {name}")
    assert against == []


def test_the_reader_of_imports_finds_them() -> None:
    """In functions, in ``try`` and in ``else``; not those for type checkers."""
    visitor = Imports()
    visitor.visit(
        ast.parse(
            "import a, b.c\n"
            "if TYPE_CHECKING:\n    import hidden\nelse:\n    import shown\n"
            "try:\n    from d import e\nexcept ImportError:\n    pass\n"
            "def f():\n    from otel_pgpool import _core\n    from otel_pgpool._core import Core\n"
        )
    )
    assert [name for name, _line in visitor.found] == [
        "a",
        "b.c",
        "shown",
        "d",
        "otel_pgpool._core",
        "otel_pgpool._core",
    ]


@pytest.mark.parametrize("module", [module for module in MECHANICS if module not in PSYCOPG2_FROM_AFAR])
def test_the_mechanics_know_neither_psycopg2_nor_opentelemetry(module: str) -> None:
    """They can be read, and tested, without a database."""
    assert not knows(module, "psycopg2")
    assert not knows(module, "opentelemetry")


def test_few_modules_know_psycopg2() -> None:
    """Those that handle connections, and the errors."""
    assert {module for module, _path in modules() if on_the_map(module) != "cli" and knows(module, "psycopg2")} == (
        KNOW_PSYCOPG2
    )


def test_opentelemetry_stays_in_its_rooms() -> None:
    """``telemetry``, ``otlp`` with its delivery, and the command."""
    elsewhere = [
        module
        for module, _path in modules()
        if module.partition(".")[0] not in KNOW_OPENTELEMETRY and knows(module, "opentelemetry")
    ]
    assert elsewhere == []


def test_telemetry_uses_the_api_alone() -> None:
    """The SDK is for programs: the library, its telemetry included, imports none of it."""
    users = {
        module
        for module, path in modules()
        if any(name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")) for name, _line in imports(path))
    }
    assert {on_the_map(module) for module in users} <= {"_delivery", "otlp", "cli"}


def test_a_pool_imports_no_sdk() -> None:
    """Importing the package and making a pool, telemetry included, loads no module of OpenTelemetry's SDK."""
    program = (
        "import sys\n"
        "from otel_pgpool import ConnectionPool\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')], 'before any pool'\n"
        "pool = ConnectionPool(1, 2, 'postgresql://localhost/shop', open=False)\n"
        "assert 'otel_pgpool.telemetry' in sys.modules\n"
        "pool.close()\n"
        "print(*(name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
