"""When a utilization counts as high, critical and normal again."""

from __future__ import annotations

import pytest

from otel_pgpool.pool.utilization import UtilizationAlarm, status_of


def changes(*looks: float) -> list[str | None]:
    level = UtilizationAlarm()
    return [level.update(utilization) for utilization in looks]


def test_two_looks_must_agree() -> None:
    """A peak seen once is none."""
    assert changes(0.9, 0.9) == [None, "high"]
    assert changes(0.9, 0.1, 0.9, 0.1) == [None] * 4
    assert changes(1.0, 0.9, 1.0, 0.9) == [None] * 4


def test_a_change_is_told_once() -> None:
    """And again only after it was left."""
    assert changes(0.8, 0.8, 0.8, 0.1, 0.1, 0.1, 0.8, 0.8) == [
        None,
        "high",
        None,
        None,
        "normal",
        None,
        None,
        "high",
    ]


@pytest.mark.parametrize(
    ("utilization", "level"),
    [(0.79, None), (0.80, "high"), (0.94, "high"), (0.95, "critical"), (1.0, "critical")],
)
def test_thresholds(utilization: float, level: str | None) -> None:
    """80 % is high, 95 % is critical, each reached by being equal to it."""
    assert changes(utilization, utilization)[-1] == level


def test_thresholds_of_fractions_that_have_no_exact_float() -> None:
    """4 of 5 and 19 of 20 count."""
    assert changes(4 / 5, 4 / 5)[-1] == "high"
    assert changes(19 / 20, 19 / 20)[-1] == "critical"


def test_a_level_is_left_ten_points_below_its_threshold() -> None:
    """Hysteresis: high lasts above 70 %, critical above 85 %."""
    high = (0.8, 0.8)
    assert changes(*high, 0.71, 0.71)[2:] == [None, None]
    assert changes(*high, 0.69, 0.69)[2:] == [None, "normal"]
    critical = (1.0, 1.0)
    assert changes(*critical, 0.86, 0.86)[2:] == [None, None]
    assert changes(*critical, 0.84, 0.84)[2:] == [None, "high"]
    assert changes(*critical, 0.0, 0.0)[2:] == [None, "normal"]


def test_settled() -> None:
    """Only after normal looks may the maintenance sleep: a level reached, or about to be, needs another look."""
    level = UtilizationAlarm()
    assert level.is_settled
    level.update(0.9)
    assert not level.is_settled
    level.update(0.9)
    level.update(0.1)
    assert not level.is_settled
    assert level.update(0.1) == "normal"
    assert level.is_settled


@pytest.mark.parametrize(("utilization", "name"), [(0.0, "ok"), (0.79, "ok"), (0.8, "high"), (0.95, "critical")])
def test_names_for_the_status(utilization: float, name: str) -> None:
    """`PoolStats.status` has no hysteresis: it says what is so now."""
    assert status_of(utilization) == name
