"""The former name of `otel_pgpool.telemetry.stacks`."""

import sys

from otel_pgpool.telemetry import stacks

sys.modules[__name__] = stacks
