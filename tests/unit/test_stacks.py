"""What a thread is doing, as text: from the program's own line inwards."""

from __future__ import annotations

import gc
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.runtime.text import LONGEST_NAME, MOST_FRAMES
from otel_pgpool.telemetry import stacks
from otel_pgpool.telemetry.stacks import stack_of

if TYPE_CHECKING:
    from collections.abc import Iterable

UNNAMED = "?"
"""Code without a module."""


class Blocked:
    """A thread that is deep in calls of functions which are said to be of these modules, outermost first."""

    def __init__(self, *modules: str, file: str = "", function: str = "") -> None:
        self._go_on, self._there = threading.Event(), threading.Event()
        call: Any = self._block
        for module in reversed(modules):
            name = function or f"in_{module.replace('.', '_')}"
            space = {"inner": call} if module == UNNAMED else {"inner": call, "__name__": module}
            source = f"def {name.replace(UNNAMED, 'nowhere')}():\n    return inner()"
            exec(compile(source, file or f"/site/{module}.py", "exec"), space)  # noqa: S102 - a frame of that module
            call = space[name.replace(UNNAMED, "nowhere")]
        self.thread = threading.Thread(target=call, daemon=True)

    def _block(self) -> None:
        self._there.set()
        self._go_on.wait(10)

    def __enter__(self) -> threading.Thread:
        self.thread.start()
        assert self._there.wait(10)
        return self.thread

    def __exit__(self, *_exc: object) -> None:
        self._go_on.set()
        self.thread.join(10)


def shown(*modules: str, skipped: Iterable[str] = ()) -> list[str]:
    """Of these modules' functions those that are shown, outermost first."""
    with Blocked(*modules) as thread:
        # The function that blocks is this module's, and would be the program's.
        return re.findall(r", in in_(\w+)$", stack_of(thread, {*skipped, "tests"}), re.MULTILINE)


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("gunicorn.arbiter flask.app werkzeug.serving shop.views", "shop_views"),
        ("concurrent.futures.thread shop.jobs shop.models", "shop_jobs shop_models"),
        ("runpy importlib._bootstrap _frozen_importlib shop", "shop"),
        ("uvicorn.server starlette.routing anyio fastapi.routing shop.api", "shop_api"),
        ("celery.app billiard.pool kombu.transport shop.tasks", "shop_tasks"),
        ("django.core.handlers.wsgi opentelemetry.instrumentation.x wrapt shop.views", "shop_views"),
        # what the program calls stays
        ("gunicorn.workers shop.views sqlalchemy.engine psycopg2.pool", "shop_views sqlalchemy_engine psycopg2_pool"),
        ("flask.app shop.views flask.templating shop.models", "shop_views flask_templating shop_models"),
        ("shop.views asyncio.runners shop.models", "shop_views asyncio_runners shop_models"),
        # nothing is left out where all is a framework's
        ("gunicorn.arbiter celery.app sqlalchemy.orm", "gunicorn_arbiter celery_app sqlalchemy_orm"),
        (
            "threading asgiref.sync django.db.models psycopg.cursor",
            "threading asgiref_sync django_db_models psycopg_cursor",
        ),
        # nor what only sounds like one
        ("flaskr.app djangoproject.views", "flaskr_app djangoproject_views"),
        ("gunicorn.arbiter ? shop.views", "nowhere shop_views"),
        # the script of a server, and of a program that runs one
        ("__main__ gunicorn.app.wsgiapp flask.app shop.views", "shop_views"),
        ("__main__ __main__ django.core.management shop.views", "shop_views"),
        ("__main__ werkzeug.serving flask.app __main__ __main__", "__main__ __main__"),
        ("runpy __main__ celery.__main__ shop.tasks", "shop_tasks"),
        ("__main__ sqlalchemy.event __main__", "__main__ sqlalchemy_event __main__"),
        ("__main__ shop.jobs flask.app shop.models", "__main__ shop_jobs flask_app shop_models"),
        ("__main__ gunicorn.app.wsgiapp", "__main__ gunicorn_app_wsgiapp"),
        ("__main__", "__main__"),
    ],
)
def test_the_programs_own_line_comes_first(modules: str, expected: str) -> None:
    """What stands outside of it is left out: servers and frameworks that call the program."""
    assert " ".join(shown(*modules.split())) == expected


def test_a_program_may_name_others() -> None:
    """Packages of a framework of its own."""
    modules = ("acme_server.loop", "acme.handlers", "shop.views", "acme.db")
    assert shown(*modules)[0] == "acme_server_loop"
    assert shown(*modules, skipped=["acme_server", "acme"]) == ["shop_views", "acme_db"]


def test_a_thread_that_has_ended() -> None:
    """It does nothing."""
    with Blocked("shop") as thread:
        pass
    assert stack_of(thread) == ""


def test_it_is_bounded() -> None:
    """A deep recursion: the program's first line, and the innermost ones; how many are left out stands between."""
    with Blocked("gunicorn", "shop.first", *["shop.again"] * 500, "shop.last") as thread:
        lines = stack_of(thread, {"tests"}).splitlines()
    assert len(lines) == MOST_FRAMES
    assert lines[0].endswith("in in_shop_first")
    innermost = [line.rpartition(" ")[2] for line in lines].index("in_shop_last")
    assert lines[1] == f"... {502 - innermost} more"


def test_exactly_as_many_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is left out."""
    with Blocked("shop.first", "shop.last") as thread:
        whole = stack_of(thread).splitlines()
        monkeypatch.setattr(stacks, "MOST_FRAMES", len(whole))
        assert stack_of(thread).splitlines() == whole
        monkeypatch.setattr(stacks, "MOST_FRAMES", len(whole) - 1)
        assert stack_of(thread).splitlines() == [whole[0], "... 2 more", *whole[3:]]


def test_each_line_is_bounded() -> None:
    """Of a long path its end is shown, of a long name its beginning."""
    file, function = f"/start/{'x' * 5_000}/end.py", f"f{'y' * 5_000}"
    with Blocked("shop", file=file, function=function) as thread:
        (line,) = [line for line in stack_of(thread).splitlines() if "end.py" in line]
    assert len(line) <= 2 * LONGEST_NAME + len('File "", line 2, in ')
    assert line.startswith('File "...')
    assert 'x/end.py", line 2, in fyyy' in line


def test_no_frame_is_kept() -> None:
    """Of the running thread's own stack neither: what is in its variables goes when they do."""

    class Kept:
        pass

    def look() -> weakref.ref[Kept]:
        kept = Kept()
        assert "look" in stack_of(threading.current_thread())
        return weakref.ref(kept)

    gc.disable()
    try:
        assert look()() is None
    finally:
        gc.enable()


def test_places_only() -> None:
    """The source lines may hold SQL: none is shown."""
    with Blocked("shop") as thread:
        assert "return inner" not in stack_of(thread)
