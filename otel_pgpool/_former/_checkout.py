"""The former name of `otel_pgpool.pool.checkout`."""

import sys

from otel_pgpool.pool import checkout

sys.modules[__name__] = checkout
