"""References to asyncio's tasks, which keep no task alive. For pools of coroutines only, because of the import."""

from __future__ import annotations

import asyncio
import weakref
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

from otel_pgpool.runtime.text import LONGEST_NAME, printable

FRAMES = {CoroutineType: "cr_frame", GeneratorType: "gi_frame", AsyncGeneratorType: "ag_frame"}
"""Name of the attribute with the frame of a coroutine or a generator, by its type."""


class TaskReference:
    """A weak reference to a task, and the name that the task had when the reference was made."""

    __slots__ = ("_name", "_ref")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._ref = weakref.ref(task)
        self._name = task.get_name()

    def __str__(self) -> str:
        """Return the name, with a note if the task has ended."""
        return self.name + (" (ended)" if self.has_ended else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskReference) and self._ref == other._ref

    def __hash__(self) -> int:
        return hash(self._ref)

    @property
    def name(self) -> str:
        """The name, printable and bounded."""
        return printable(str(self._name), LONGEST_NAME)

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task, or None if it was collected."""
        return self._ref()

    @property
    def has_ended(self) -> bool:
        """Whether the task has ended."""
        task = self.task
        return task is None or task.done()

    @property
    def is_running(self) -> bool:
        """Whether the task is the one that its loop runs now. Other threads may ask."""
        task = self.task
        return task is not None and asyncio.current_task(task.get_loop()) is task

    @property
    def root(self) -> FrameType | None:
        """The frame of the task's own coroutine; None if there is none."""
        task = self._ref()
        if task is None:
            return None
        coro = task.get_coro()
        return coro.cr_frame if type(coro) is CoroutineType else frame_of(coro)  # the former spares a call


def running_task() -> TaskReference | None:
    """Return a reference to the running task; None outside of tasks, and for a task that allows no reference."""
    try:
        task = asyncio.current_task()
        return None if task is None else TaskReference(task)
    except Exception:  # noqa: BLE001 - there is no loop, or a task factory of the application has made the task
        return None


def frame_of(suspendable: object) -> FrameType | None:
    """Return the frame of a coroutine or a generator; None if it has ended, or is of another kind."""
    attribute = FRAMES.get(type(suspendable))
    return None if attribute is None else getattr(suspendable, attribute)
