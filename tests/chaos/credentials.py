"""Faults of credentials: a password that is rotated, and a certificate that does not verify."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.environment import NEW_PASSWORD, execute, over_tls, with_a_password
from tests.chaos.network import network
from tests.chaos.runner import MAXCONN, OUTAGE, Fault

if TYPE_CHECKING:
    from tests.chaos.runner import FaultRun


def rotated(run: FaultRun) -> float:
    """Let the server refuse the old password; the application gets the new one later."""
    secret = run.environment.options["credentials"]()
    execute(run.server, f"alter role app password '{NEW_PASSWORD}'")
    run.kill(run.backends())
    run.stay_away()
    secret["password"] = NEW_PASSWORD
    return monotonic()


def unverified(run: FaultRun) -> float:
    """Let the server present an unknown certificate for a while."""
    proxy, certificates = network(run), run.environment.certificates
    proxy.certify(certificates["stranger"])
    proxy.cut()
    run.stay_away()
    proxy.certify(certificates["trusted"])
    return monotonic()


FAULTS = {
    "rotated": Fault(
        "password rotated, the application's secret follows",
        "`alter role`, all backends killed; `credentials` returns the new password later",
        rotated,
        environment=with_a_password,
        ours_alone=True,
        evidence=("while it connected: .*password authentication failed",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "unverified": Fault(
        "certificate that does not verify",
        "all connections cut, then another authority's certificate for a while; `sslmode=verify-full`",
        unverified,
        environment=over_tls,
        evidence=("while it connected: .*certificate verify failed",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
}
