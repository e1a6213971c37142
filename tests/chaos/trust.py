"""A password that is not believed any more, and a certificate that is not believed at all."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.ground import NEW_PASSWORD, execute, over_tls, with_a_password
from tests.chaos.network import network
from tests.chaos.scene import MAXCONN, OUTAGE, Fault

if TYPE_CHECKING:
    from tests.chaos.scene import Scene


def rotated(scene: Scene) -> float:
    """Let the server refuse the old password; the application gets the new one later."""
    secret = scene.ground.options["credentials"]()
    execute(scene.server, f"alter role app password '{NEW_PASSWORD}'")
    scene.kill(scene.backends())
    scene.stay_away()
    secret["password"] = NEW_PASSWORD
    return monotonic()


def unverified(scene: Scene) -> float:
    """Let the server present an unknown certificate for a while."""
    proxy, certificates = network(scene), scene.ground.certificates
    proxy.certify(certificates["stranger"])
    proxy.cut()
    scene.stay_away()
    proxy.certify(certificates["trusted"])
    return monotonic()


FAULTS = {
    "rotated": Fault(
        "password rotated, the application's secret follows",
        "`alter role`, all killed; `credentials` returns the new one later",
        rotated,
        ground=with_a_password,
        ours_alone=True,
        meets=("while it connected: .*password authentication failed",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "unverified": Fault(
        "certificate that does not verify",
        "all cut, another authority's certificate shown for a while; `sslmode=verify-full`",
        unverified,
        ground=over_tls,
        meets=("while it connected: .*certificate verify failed",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
}
