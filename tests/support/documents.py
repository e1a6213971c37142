"""README.md and docs/ as their readers use them: their code blocks as programs, their tables as cells.

A `python` block that begins with `# name.py` is a program; those without a name continue the last one. The `text`
blocks after it are what it prints. A `diff` is two programs, before and after. A `sh` block is lines for a shell, a
`promql` block a query for Prometheus, an `sql` block one for PostgreSQL, a `yaml` block a file. The sections of
`docs/recipes.md` and of `docs/extending.md` are projects of several files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psycopg2

ROOT = Path(__file__).parents[2]
README, GUIDE, REFERENCE, TELEMETRY, INSTRUMENTATION, RECIPES, EXTENDING = (
    "README.md",
    "docs/guide.md",
    "docs/reference.md",
    "docs/telemetry.md",
    "docs/instrumentation.md",
    "docs/recipes.md",
    "docs/extending.md",
)
DOCUMENTS = (README, "SECURITY.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
BIN = Path(sys.executable).parent

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
PICTURE = "<!-- picture -->\n```text\n"

KEPT = {"diff": "diffs", "promql": "queries", "sql": "statements", "yaml": "files"}
"""The list of a `Document` in which blocks of a language are kept as they are."""

# What a program is asked to do after its own last line.
AND_THEN = {
    "web.py": """
pid = os.fork()
if pid == 0:
    post_fork(None, None)
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("select 1")
    os._exit(0 if pool.stats().idle == 2 else 1)
assert os.waitpid(pid, 0)[1] == 0
assert pool.stats().status == "new"
""",
    "late_order.py": """
with open("spans.json", "w") as file:
    file.write(f"[{','.join(span.to_json(indent=None) for span in memory.get_finished_spans())}]")
""",
}


@dataclass
class Program:
    """Python blocks that belong together, and what they print according to the text blocks after them."""

    document: str
    name: str
    source: str
    prints: str = ""


@dataclass
class Document:
    """Blocks by kind: a file's, or those of one of its recipes."""

    programs: dict[str, Program] = field(default_factory=dict)
    diffs: list[str] = field(default_factory=list)
    shell: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    picture: str = ""
    recipes: dict[str, Document] = field(default_factory=dict)


@cache
def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def outside_of_code(document: str) -> str:
    return FENCE.sub("", text_of(document))


@cache
def read(document: str) -> Document:
    """Return the blocks of a file, without those of its recipes."""
    found = Document()
    text = text_of(document)
    program: Program | None = None
    for match in FENCE.finditer(text):
        language, body = match.groups()
        recipe = recipe_at(document, match.start())
        place = found if recipe is None else found.recipes.setdefault(recipe, Document())
        if text[: match.end()].endswith(f"{PICTURE}{body}```"):
            place.picture = body
        elif language == "python" and (named := re.match(r"# ([\w./]+\.py)\n", body)):
            assert named[1] not in place.programs, f"two programs of {document} are called {named[1]}"
            program = place.programs[named[1]] = Program(document, named[1], body)
        elif language == "python" and program is not None:
            program.source += f"\n{body}"
        elif language == "text" and program is not None:
            program.prints += body
        elif language in KEPT:
            getattr(place, KEPT[language]).append(body)
        elif language == "sh":
            place.shell += body.replace("\\\n", "").splitlines()
        else:
            raise AssertionError(f"{document} has a block that nothing tests: {language!r}\n{body}")
    return found


def recipe_at(document: str, position: int) -> str | None:
    """Return the recipe, a section of a page of recipes, to which a position in a file belongs."""
    if document not in {RECIPES, EXTENDING}:
        return None
    text = FENCE.sub("", text_of(document)[:position])  # where comments look like headings
    sections = [heading[2] for heading in HEADING.finditer(text) if heading[1] == "##"]
    return sections[-1] if sections else None


def table(document: str, name: str) -> list[list[str]]:
    """Return the cells of the table below a comment, without its head."""
    _, found, rest = text_of(document).partition(f"<!-- {name} -->\n")
    assert found, f"{document} has no table {name!r}"
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]


def head(document: str, name: str) -> list[str]:
    """Return the cells of the head of the table below a comment."""
    _, _, rest = text_of(document).partition(f"<!-- {name} -->\n")
    return [cell.strip() for cell in rest.splitlines()[0].strip().strip("|").split("|")]


def code(cell: str) -> list[str]:
    """Return the text that a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def clean_environ() -> dict[str, str]:
    """Return this process's environment, without variables that would configure a program under test or measure it."""
    foreign = ("OTEL_", "COVERAGE_", "DB_", "PG", "PYTHON", "CELERY_", "DJANGO_", "FLASK_", "GUNICORN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "PYTHONPATH": str(ROOT)}


def write(program: Program, folder: Path) -> None:
    """Put a program in its place."""
    path = folder / program.name
    path.parent.mkdir(exist_ok=True)
    path.write_text(program.source + AND_THEN.get(program.name, ""), encoding="utf-8")


def make_tables(dsn: str) -> None:
    """Give a program the table that all of them use, as the guide's program does for its readers."""
    [table] = re.findall(r'TABLE = """(.*?)"""', read(GUIDE).programs["with_postgres.py"].source, re.DOTALL)
    conn = psycopg2.connect(dsn)
    try:
        with conn, conn.cursor() as cur:
            cur.execute(f"drop table if exists orders;{table}")
    finally:
        conn.close()


def run(program: Program, environ: dict[str, str], folder: Path, command: str | None = None) -> str:
    """Run a program as its reader would; return what it printed."""
    make_tables(environ["DATABASE_URL"])
    write(program, folder)
    done = subprocess.run(
        ["sh", "-c", command or f"python {program.name}"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, f"{program.document}, {program.name}:\n{done.stderr}"
    return done.stdout.replace(f"{folder}/", "")
