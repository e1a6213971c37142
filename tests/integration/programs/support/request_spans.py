"""A span for each request of Django: what `opentelemetry-instrumentation-django` adds to a project's middleware."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, get_tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

tracer = get_tracer(__name__)


class RequestSpans:
    """Middleware that works with and without asyncio, like Django's own."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        if iscoroutinefunction(self):
            return self._respond_later(request)
        with _span(request):
            return self._get_response(request)

    async def _respond_later(self, request: Any) -> Any:
        with _span(request):
            return await self._get_response(request)


@contextmanager
def _span(request: Any) -> Iterator[None]:
    name = f"{request.method} {request.path}"
    with tracer.start_as_current_span(name, extract(request.headers), kind=SpanKind.SERVER):
        yield
