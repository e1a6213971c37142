"""Somebody who looks on while all goes on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Lookout:
    """A thread that looks on until the block is left; what ends it before is a violation, as nobody looks any more."""

    def __init__(self) -> None:
        self.violations: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__.lower(), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._look_on()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.violations.add(f"{self._thread.name} was ended by {error!r}")

    def _look_on(self) -> None:
        """Until it is over."""
        raise NotImplementedError
