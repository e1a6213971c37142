"""Pieces of telemetry that raise whenever they are used."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import Sampler


class BrokenError(Exception):
    """What a broken piece raises."""


def broken(*_args: object, **_kwargs: object) -> Any:
    raise BrokenError("telemetry is broken")


class BrokenAtStart(SpanProcessor):
    on_start = broken


class BrokenAtEnd(SpanProcessor):
    on_end = broken


class BrokenSampler(Sampler):
    should_sample = broken

    def get_description(self) -> str:
        return "broken"
