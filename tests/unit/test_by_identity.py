"""A dictionary by identity: the classes of its keys may be of any kind."""

from __future__ import annotations

import gc

from otel_pgpool.runtime.by_identity import WeakIdentityDict


class Alike:
    """An object that is equal to all others of its class, and hence not hashable."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)

    __hash__ = None  # type: ignore[assignment]  # as Python sets it


def test_equal_keys() -> None:
    """Each object has a value of its own, until that is removed."""
    values: WeakIdentityDict[int] = WeakIdentityDict()
    one, two, three = Alike(), Alike(), Alike()
    values[one] = 1
    values[two] = 2
    assert (one in values, two in values, three in values) == (True, True, False)
    assert (values.pop(one), values.pop(one), values.pop(three)) == (1, None, None)
    assert len(values) == 1


def test_collected_key() -> None:
    """An object that is collected takes its value along, and not that of an object at the same place."""
    values: WeakIdentityDict[int] = WeakIdentityDict()
    for number in range(3):
        key = Alike()
        values[key] = number
        assert len(values) == 1
        assert key in values
        del key
        gc.collect()
        assert not values


def test_replaced_value() -> None:
    """A value may be replaced."""
    values: WeakIdentityDict[int] = WeakIdentityDict()
    key = Alike()
    values[key] = 1
    values[key] = 2
    assert values.pop(key) == 2
