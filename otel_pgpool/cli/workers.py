"""The shop's workers: threads that run the jobs of the present scene, and errands in between."""

from __future__ import annotations

import queue
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUIET_PAUSE = 0.02


@dataclass(frozen=True)
class Scene:
    """The jobs among which the workers choose at random, and the pause after each, from and to, in seconds."""

    jobs: Sequence[Callable[[], object]] = ()
    pause: tuple[float, float] = (QUIET_PAUSE, QUIET_PAUSE)


@dataclass
class Errand:
    """A job that is done once, by the first worker that is free."""

    job: Callable[[], object]
    thread: str = ""
    """Name of the worker that does the job; empty until one has begun."""
    done: threading.Event = field(default_factory=threading.Event)


class Workers:
    """A number of threads, which run from `start` until ``closing`` is set."""

    def __init__(self, count: int, closing: threading.Event) -> None:
        self.scene = Scene()
        self.failures: list[BaseException] = []
        """Exceptions of the jobs: none, unless the demo itself has a fault."""
        self._closing = closing
        self._errands: queue.SimpleQueue[Errand] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number:02}", daemon=True)
            for number in range(1, count + 1)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> None:
        """Wait for all workers to end their requests, for at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:  # started
                thread.join(max(0.0, deadline - time.monotonic()))

    def send(self, job: Callable[[], object]) -> Errand:
        """Have a job done by the first worker that is free."""
        errand = Errand(job)
        self._errands.put(errand)
        return errand

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                self._next()
            except Exception as error:  # noqa: BLE001 - kept, and printed at the end
                self.failures.append(error)
                self._closing.wait(QUIET_PAUSE)

    def _next(self) -> None:
        try:
            errand = self._errands.get_nowait()
        except queue.Empty:
            scene = self.scene
            if scene.jobs:
                random.choice(scene.jobs)()  # nosec B311 # chance, no secret
            self._closing.wait(random.uniform(*scene.pause))  # nosec B311 # chance, no secret
            return
        errand.thread = threading.current_thread().name
        try:
            errand.job()
        finally:
            errand.done.set()
