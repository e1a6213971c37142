"""The former name of `otel_pgpool.pool.liveness`."""

import sys

from otel_pgpool.pool import liveness

sys.modules[__name__] = liveness
