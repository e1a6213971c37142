"""An OTLP receiver for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.receivers import HttpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver
