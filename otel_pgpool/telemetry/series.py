"""What the SDK keeps of series, which it has no public way to let go.

It keeps every series that it has seen, exports a histogram's for ever, and walks them all at each collection. A forked
child would go on to export its parent's records beside its own, so that every worker of a pre-fork server counted them
once more. Where the SDK's inside looks otherwise than is expected here, nothing is done, and the caller is told so.

A reader stands here as the SDK's storage for it: one for each reader, with the series by instrument.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import FrameType

    IsOver = Callable[[dict[str, Any]], bool]
    """Whether the series with these attributes is to go."""

FRAMES = 4
"""Within so many stands the SDK's collection around its call of us."""

UNEXPECTED = AttributeError, TypeError, KeyError


def readers(instruments: Iterable[Any]) -> list[Any]:
    """Every reader; none where that cannot be found out."""
    for instrument in instruments:
        with suppress(*UNEXPECTED):
            return list(_real(instrument)._measurement_consumer._reader_storages.values())
    return []


def collecting(frame: FrameType | None) -> Any:
    """The reader that collects, by a frame inside of its collection; None where that cannot be found out.

    The SDK does not tell it to a callback; its own method, which calls that, has it as an argument.
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
    """Empty instruments of everything that was told them: in a forked child, the parent's. False if one could not be.

    Without the locks, which another thread of the parent may have held.
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
    """Let go of series. False if some could not be."""
    return _forget(known, instruments, is_over, lambda _series: True)


def forget_exported(reader: Any, instruments: Collection[Any], is_over: IsOver) -> None:
    """Let go of a reader's series that hold nothing which it has not exported."""
    _forget([reader], instruments, is_over, _is_exported)


def leaves_out(reader: Any, instrument: Any, attribute: str) -> bool:
    """Whether a reader's view of an instrument leaves an attribute out, and so adds up series that differ in it."""
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
    """Whether nothing was recorded since the last collection: exponential buckets have a value of their own."""
    return getattr(series, "_value", None) is None and getattr(series, "_value_positive", None) is None


def _kept(reader: Any, instrument: Any) -> Iterator[tuple[dict[Any, Any], Any]]:
    """A reader's series of an instrument by their attributes, and the lock that guards them: for each view."""
    for match in reader._instrument_view_instrument_matches.get(_real(instrument), ()):
        yield match._attributes_aggregation, match._lock


def _real(instrument: Any) -> Any:
    return getattr(instrument, "_real_instrument", None) or instrument
