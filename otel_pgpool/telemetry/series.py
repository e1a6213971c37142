"""Removal of series from the SDK's storage, for which the SDK has no public method.

The SDK keeps every series, exports a histogram's series forever, and iterates over all of them at each collection. A
forked child would also export its parent's records, so that each worker of a pre-fork server would count them again. If
the SDK's private attributes differ from what this module expects, the functions change nothing and report that to the
caller.

A reader is represented by the SDK's storage for it: one for each reader, with the series by instrument.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import FrameType

    IsOver = Callable[[dict[str, Any]], bool]
    """Whether the series with these attributes is to be removed."""

FRAMES = 4
"""Maximum number of frames between a callback and the SDK's collection that called it."""

UNEXPECTED = AttributeError, TypeError, KeyError


def readers(instruments: Iterable[Any]) -> list[Any]:
    """Return every reader; an empty list if they cannot be determined."""
    for instrument in instruments:
        with suppress(*UNEXPECTED):
            return list(_real(instrument)._measurement_consumer._reader_storages.values())
    return []


def collecting(frame: FrameType | None) -> Any:
    """Find the reader that collects, by a frame inside its collection; None if it cannot be determined.

    The SDK does not pass the reader to a callback, but a method of the SDK that calls it has the reader as an argument.
    """
    for _ in range(FRAMES):
        if frame is None:
            break
        reader = frame.f_locals.get("metric_reader")
        if reader is not None:
            with suppress(*UNEXPECTED):
                return frame.f_locals["self"]._reader_storages[reader]
        frame = frame.f_back
    return None


def forget_all(instruments: Collection[Any]) -> bool:
    """Remove all series of instruments, in a forked child; return False if that failed.

    The locks are not taken, because another thread of the parent may have held them.
    """
    known = readers(instruments)
    try:
        for instrument in instruments:
            for reader in known:
                for kept, _lock in _kept(reader, instrument):
                    kept.clear()
    except UNEXPECTED:
        return False
    return bool(known)


def forget(known: Iterable[Any], instruments: Collection[Any], is_over: IsOver) -> bool:
    """Remove series; return False if some could not be removed."""
    return _forget(known, instruments, is_over, lambda _series: True)


def forget_exported(reader: Any, instruments: Collection[Any], is_over: IsOver) -> None:
    """Remove those of a reader's series that contain nothing unexported."""
    _forget([reader], instruments, is_over, _is_exported)


def leaves_out(reader: Any, instrument: Any, attribute: str) -> bool:
    """Return whether a reader's view of an instrument drops an attribute, and so merges series that differ in it."""
    with suppress(*UNEXPECTED):
        matches = reader._instrument_view_instrument_matches.get(_real(instrument), ())
        keys = [match._view._attribute_keys for match in matches]
        return any(kept is not None and attribute not in kept for kept in keys)
    return False


def _forget(known: Iterable[Any], instruments: Collection[Any], is_over: IsOver, may_go: Callable[[Any], bool]) -> bool:
    try:
        for reader in known:
            for instrument in instruments:
                for kept, lock in _kept(reader, instrument):
                    with lock:
                        for key in [key for key, series in kept.items() if is_over(series._attributes)]:
                            if may_go(kept[key]):
                                del kept[key]
    except UNEXPECTED:
        return False
    return True


def _is_exported(series: Any) -> bool:
    """Return whether nothing was recorded since the last collection. Exponential buckets use another attribute."""
    return getattr(series, "_value", None) is None and getattr(series, "_value_positive", None) is None


def _kept(reader: Any, instrument: Any) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Iterate over the views of an instrument: a reader's series by their attributes, and the lock that guards them."""
    for match in reader._instrument_view_instrument_matches.get(_real(instrument), ()):
        yield match._attributes_aggregation, match._lock


def _real(instrument: Any) -> Any:
    return getattr(instrument, "_real_instrument", None) or instrument
