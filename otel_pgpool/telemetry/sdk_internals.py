"""The private parts of OpenTelemetry's API and SDK that this package uses; no other module uses one.

The text of each use says why there is no public way, and how telemetry continues in a release without the part. All
uses were checked on the releases 1.36 and 1.45 of API and SDK; those of ``configure()`` on 1.45, the first release that
the extra ``otlp`` accepts. This module imports the API only, and gets the SDK's objects through the API.

Modules such as ``opentelemetry._logs`` and ``opentelemetry.sdk._logs`` are not private, despite their names: they are
the documented modules for logs.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import FrameType

    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

    IsOver = Callable[[dict[str, Any]], bool]
    """Whether the series with these attributes is to be removed."""

UNEXPECTED = AttributeError, TypeError, KeyError
"""What an access to a private part raises if it is gone or has changed."""


# Contexts

SUPPRESSION_KEY: str = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "")
"""Key of a context in which the caller has suppressed instrumentation.

The public function that reads it is in the package ``opentelemetry-instrumentation``, which a pool does not need.
Without the key, suppression is ignored.
"""

SPAN_KEY = next(iter(set_span_in_context(INVALID_SPAN, context.Context())), "")
"""Key of the span in a context, read from a context that the API has created, in case a release changes the key.

``{**caller, SPAN_KEY: span}`` equals the result of ``set_span_in_context`` without its three calls and two copies.
"""


# Providers that are not set yet


class RecordingGate:
    """A gate: while ``_real_instrument`` is None it is closed, and ordinary checkouts record nothing.

    The API's own proxy histograms have this attribute, and it is None until the global provider is set, so that they
    serve as gates themselves. The caller reads the attribute, because a method call would cost a tenth of what the gate
    saves.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._real_instrument = True if is_open else None


CLOSED = RecordingGate()
"""The gate of a pool that records neither spans nor waits and holds."""

OPEN = RecordingGate(is_open=True)
"""The gate of a pool that records every checkout."""


def recording_gate(histogram: Any) -> Any:
    """Return a histogram of the API as a gate, or None if it records at once.

    Without the attribute ``_real_instrument``, every checkout passes its values on, and the API drops them.
    """
    return histogram if hasattr(histogram, "_real_instrument") else None


def waits_for_provider(tracer: object) -> bool:
    """Return whether a tracer creates no spans until the global provider is set; see `has_provider`."""
    return isinstance(tracer, trace.ProxyTracer) and hasattr(trace, "_TRACER_PROVIDER")


def has_provider(_caller: Context) -> bool:
    """Return whether the global tracer provider is set.

    The public function would create a provider if an environment variable names one. The test costs a tenth of a span
    that the API creates and nobody exports; without the attribute, such spans are created.
    """
    return trace._TRACER_PROVIDER is not None  # noqa: SLF001 - see above


def global_tracer_provider() -> TracerProvider | None:
    """Return the global tracer provider, or None if it is not set.

    See `has_provider`; without the attribute, the public function is called.
    """
    if hasattr(trace, "_TRACER_PROVIDER"):
        return trace._TRACER_PROVIDER  # noqa: SLF001 - see above
    return trace.get_tracer_provider()


# The shutdown of the SDK's processors


def shutdown_batch_processor(processor: Any, shutdown: Callable[[], None], timeout_millis: int) -> None:
    """Shut one of the SDK's batch processors down within a time.

    The public method ``shutdown`` takes no limit, and waits for up to 30 s; it is called in a release without the
    attribute.
    """
    try:
        limited = processor._batch_processor.shutdown  # noqa: SLF001 - see above
    except AttributeError:
        shutdown()
    else:
        limited(timeout_millis=timeout_millis)


REPEATING_LOGGERS = (
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.instrument",
    "opentelemetry.sdk.metrics._internal.export",
)
"""Loggers of the SDK, named after its private modules, that repeat a record at each export and each collection.

If a release renames these modules, their records pass each time.
"""


# The storage of metrics
#
# The SDK keeps every series, exports a histogram's series forever, and iterates over all of them at each collection. A
# forked child would also export its parent's records, so that each worker of a pre-fork server would count them again.
# The SDK has no public method that removes series. In a release whose attributes differ from what is expected here, the
# functions change nothing and report that to the caller: the series stay.
#
# A reader is represented by the SDK's storage for it: one for each reader, with the series by instrument.

COLLECTION_FRAMES = 4
"""Maximum number of frames between a callback and the SDK's collection that called it."""


def all_readers(instruments: Iterable[Any]) -> list[Any]:
    """Return every reader; an empty list if they cannot be determined."""
    for instrument in instruments:
        with suppress(*UNEXPECTED):
            storages = _real(instrument)._measurement_consumer._reader_storages  # noqa: SLF001 - see above
            return list(storages.values())
    return []


def collecting_reader(frame: FrameType | None) -> Any:
    """Find the reader that collects, by a frame inside its collection; None if it cannot be determined.

    The SDK does not pass the reader to a callback, but a method of the SDK that calls it has the reader as an argument.
    """
    for _ in range(COLLECTION_FRAMES):
        if frame is None:
            break
        reader = frame.f_locals.get("metric_reader")
        if reader is not None:
            with suppress(*UNEXPECTED):
                return frame.f_locals["self"]._reader_storages[reader]  # noqa: SLF001 - see above
        frame = frame.f_back
    return None


def drop_all_series(instruments: Collection[Any]) -> bool:
    """Remove all series of instruments, in a forked child; return False if that failed.

    The locks are not taken, because another thread of the parent may have held them.
    """
    readers = all_readers(instruments)
    try:
        for instrument in instruments:
            for reader in readers:
                for series, _lock in _stored_series(reader, instrument):
                    series.clear()
    except UNEXPECTED:
        return False
    return bool(readers)


def drop_uncollected(readers: Iterable[Any], observables: Collection[Any]) -> None:
    """Remove what was observed in a collection that was given up, as the SDK does after its time limit.

    The SDK would add the observations of the next collection to it, so that totals would rise, and then decrease.
    """
    with suppress(*UNEXPECTED):
        for reader in readers:
            for instrument in observables:
                for series, lock in _stored_series(reader, instrument):
                    with lock:
                        for each in series.values():
                            each._value = None  # noqa: SLF001 - see above


def drops_attribute(reader: Any, instrument: Any, attribute: str) -> bool:
    """Return whether a reader's view of an instrument drops an attribute, and so merges series that differ in it."""
    with suppress(*UNEXPECTED):
        matches = reader._instrument_view_instrument_matches.get(_real(instrument), ())  # noqa: SLF001 - see above
        keys = [match._view._attribute_keys for match in matches]  # noqa: SLF001 - see above
        return any(kept is not None and attribute not in kept for kept in keys)
    return False


def drop_series(
    readers: Iterable[Any],
    instruments: Collection[Any],
    is_over: IsOver,
    may_drop: Callable[[Any], bool] = lambda _aggregation: True,
) -> bool:
    """Remove series for which ``may_drop`` is true; return False if some could not be removed."""
    try:
        for reader in readers:
            for instrument in instruments:
                for series, lock in _stored_series(reader, instrument):
                    with lock:
                        over = [key for key, each in series.items() if is_over(each._attributes) and may_drop(each)]  # noqa: SLF001 - see above
                        for key in over:
                            del series[key]
    except UNEXPECTED:
        return False
    return True


def is_exported(aggregation: Any) -> bool:
    """Return whether nothing was recorded since the last collection. Exponential buckets use another attribute."""
    return getattr(aggregation, "_value", None) is None and getattr(aggregation, "_value_positive", None) is None


def _stored_series(reader: Any, instrument: Any) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Iterate over the views of an instrument: a reader's series by their attributes, and the lock that guards them."""
    for match in reader._instrument_view_instrument_matches.get(_real(instrument), ()):  # noqa: SLF001 - see above
        yield match._attributes_aggregation, match._lock  # noqa: SLF001 - see above


def _real(instrument: Any) -> Any:
    """Return the SDK's instrument behind an instrument of the API."""
    return getattr(instrument, "_real_instrument", None) or instrument
