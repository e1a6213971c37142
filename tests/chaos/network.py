"""The network between the pool and its server: cut, silent, slow."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.ground import over_a_network
from tests.chaos.proxy import Proxy, Weather
from tests.chaos.scene import MAXCONN, OUTAGE, Fault
from tests.chaos.symptoms import ENDED

if TYPE_CHECKING:
    from tests.chaos.scene import Scene


def network(scene: Scene) -> Proxy:
    assert scene.ground.proxy is not None
    return scene.ground.proxy


def cut(scene: Scene) -> float:
    network(scene).cut()
    return monotonic()


def under(scene: Scene, weather: Weather, *, cut_first: bool = False) -> float:
    proxy = network(scene)
    proxy.weather = weather
    if cut_first:
        proxy.cut()
    scene.stay_away()
    scene.wait_for(lambda: proxy.struck[weather])
    proxy.weather = Weather.FAIR
    if weather in (Weather.SILENT, Weather.BLACK_HOLE):
        proxy.cut()  # who was never answered will not be
    return monotonic()


def black_holed(scene: Scene) -> float:
    return under(scene, Weather.BLACK_HOLE)


def slower(scene: Scene) -> float:
    return under(scene, Weather.SLOW)


def byte_by_byte(scene: Scene) -> float:
    return under(scene, Weather.DRIP)


def reset_during_connect(scene: Scene) -> float:
    return under(scene, Weather.RESETTING, cut_first=True)


def silent_port(scene: Scene) -> float:
    return under(scene, Weather.SILENT, cut_first=True)


FAULTS = {
    "cut": Fault(
        "network cut",
        "every connection reset",
        cut,
        ground=over_a_network,
        meets=(ENDED,),
        errors=MAXCONN,
    ),
    "black-hole": Fault(
        "network black-holed",
        "nothing passes, nothing is said",
        black_holed,
        ground=over_a_network,
        errors=MAXCONN,
        shut_out=True,
    ),
    "slow": Fault("network 200 ms slower", "100 ms each way", slower, ground=over_a_network),
    "drip": Fault("network passes one byte at a time", "each byte sent by itself", byte_by_byte, ground=over_a_network),
    "connect-reset": Fault(
        "connections reset while they are made",
        "all cut, new ones accepted and reset",
        reset_during_connect,
        ground=over_a_network,
        meets=("while it connected: .*(reset by peer|closed the connection)",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "silent-port": Fault(
        "a port that accepts and says nothing",
        "all cut, new ones accepted and never answered",
        silent_port,
        ground=over_a_network,
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
}
