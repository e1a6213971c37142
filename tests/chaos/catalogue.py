"""The faults."""

from tests.chaos import drops, failover, forks, freezes, kills, network, outages, suspension, telemetry, trust

OUTSIDE = {
    **kills.FAULTS,
    **outages.FAULTS,
    **freezes.FAULTS,
    **network.FAULTS,
    **failover.FAULTS,
    **trust.FAULTS,
    **forks.FAULTS,
}
"""What happens to the server, to the network, and to the process."""

FAULTS = {**OUTSIDE, **drops.FAULTS, **suspension.FAULTS, **telemetry.FAULTS}
