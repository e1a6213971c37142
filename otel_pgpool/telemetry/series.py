"""What the SDK keeps of series that have ended, which it has no public way to let go.

It keeps every series that it has seen, exports a histogram's for ever, and walks them all at each collection. A forked
child would go on to export its parent's records beside its own, so that every worker of a pre-fork server counted them
once more. Where the SDK's inside looks otherwise than is expected here, nothing is done.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def forget_all(instruments: Iterable[Any]) -> None:
    """Empty instruments of everything that was recorded: in a forked child, the parent's."""
    for kept, _lock in _kept(instruments):
        kept.clear()  # without the lock, which another thread of the parent may have held


def forget(instruments: Iterable[Any], is_over: Callable[[dict[str, Any]], bool]) -> None:
    """Let go of the series whose attributes say that they are over.

    Only where there is one reader: with several nobody knows which of them has exported their end.
    """
    instruments = list(instruments)
    if not _has_one_reader(instruments):
        return
    for kept, lock in _kept(instruments):
        with lock:
            for key in [key for key, series in kept.items() if is_over(series._attributes)]:
                del kept[key]


def _kept(instruments: Iterable[Any]) -> Iterator[tuple[dict[Any, Any], Any]]:
    """For each instrument and reader, the series by their attributes, and the lock that guards them."""
    for instrument in instruments:
        with suppress(AttributeError, TypeError):
            real = _real(instrument)
            for storage in _storages(real):
                for match in storage._instrument_view_instrument_matches.get(real, ()):
                    yield match._attributes_aggregation, match._lock


def _has_one_reader(instruments: list[Any]) -> bool:
    with suppress(AttributeError, TypeError, IndexError):
        return len(_storages(_real(instruments[0]))) == 1
    return False


def _storages(real: Any) -> list[Any]:
    return list(real._measurement_consumer._reader_storages.values())


def _real(instrument: Any) -> Any:
    return getattr(instrument, "_real_instrument", None) or instrument
