"""What stands for Jaeger and for Prometheus."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tests.support.receivers import GrpcReceiver, HttpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator


class Targets(NamedTuple):
    jaeger: GrpcReceiver
    prometheus: HttpReceiver

    @property
    def environ(self) -> dict[str, str]:
        """The variables by which a Collector finds them."""
        return {
            "JAEGER_ENDPOINT": self.jaeger.endpoint.removeprefix("http://"),
            "PROMETHEUS_ENDPOINT": self.prometheus.endpoint,
        }


@contextmanager
def open_targets() -> Iterator[Targets]:
    with GrpcReceiver() as jaeger, HttpReceiver() as prometheus:
        yield Targets(jaeger, prometheus)
