"""All faults, by their names on the command line."""

from tests.chaos import credentials, network, process, server, telemetry

OUTSIDE = {
    **server.KILLS,
    **server.OUTAGES,
    **server.FREEZES,
    **network.FAULTS,
    **server.FAILOVERS,
    **credentials.FAULTS,
    **process.FORKS,
}
"""What happens to the server, to the network, and to the process."""

FAULTS = {**OUTSIDE, **process.DROPS, **process.SUSPENSIONS, **telemetry.FAULTS}
