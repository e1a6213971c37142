"""Faults of the network between the pool and its server: cut, silent, slow."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.checks import ENDED
from tests.chaos.environment import over_a_network
from tests.chaos.runner import MAXCONN, OUTAGE, Fault
from tests.support.proxy import Condition, Proxy

if TYPE_CHECKING:
    from tests.chaos.runner import FaultRun


def network(run: FaultRun) -> Proxy:
    assert run.environment.proxy is not None
    return run.environment.proxy


def cut(run: FaultRun) -> float:
    network(run).cut()
    return monotonic()


def under(run: FaultRun, condition: Condition, *, cut_first: bool = False) -> float:
    proxy = network(run)
    proxy.condition = condition
    if cut_first:
        proxy.cut()
    run.stay_away()
    run.wait_for(lambda: proxy.felt[condition])
    proxy.condition = Condition.NORMAL
    if condition in (Condition.SILENT, Condition.BLACK_HOLE):
        proxy.cut()  # unanswered clients are never answered
    return monotonic()


FAULTS = {
    "cut": Fault(
        "network cut",
        "every connection reset",
        cut,
        environment=over_a_network,
        evidence=(ENDED,),
        errors=MAXCONN,
    ),
    "black-hole": Fault(
        "network black-holed",
        "no data passes, and no connection is reset",
        partial(under, condition=Condition.BLACK_HOLE),
        environment=over_a_network,
        errors=MAXCONN,
        shut_out=True,
    ),
    "slow": Fault(
        "network 200 ms slower", "100 ms each way", partial(under, condition=Condition.SLOW), environment=over_a_network
    ),
    "drip": Fault(
        "network passes one byte at a time",
        "each byte sent by itself",
        partial(under, condition=Condition.BYTE_BY_BYTE),
        environment=over_a_network,
    ),
    "connect-reset": Fault(
        "connections reset while they are made",
        "all connections cut, new ones accepted and reset",
        partial(under, condition=Condition.RESETTING, cut_first=True),
        environment=over_a_network,
        evidence=("while it connected: .*(reset by peer|closed the connection)",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "silent-port": Fault(
        "a port that accepts and never answers",
        "all connections cut, new ones accepted and never answered",
        partial(under, condition=Condition.SILENT, cut_first=True),
        environment=over_a_network,
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
}
