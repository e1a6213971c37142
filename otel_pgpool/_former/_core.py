"""The former name of `otel_pgpool.pool.core`."""

import sys

from otel_pgpool.pool import core

sys.modules[__name__] = core
