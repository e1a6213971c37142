"""What a pool, or its application, is told of a fault: patterns for ``Fault.meets``."""

IN_RECOVERY = "while it connected: .*the database system is (starting up|not (yet )?accepting connections)"
"""All of these are 57P03; which of them it is depends on how far the standby has come."""
ENDED = "server closed the connection|57P0[12]"
"""By whatever psycopg2 and libpq make of the server's last word."""
REFUSED = "while it connected: .*Connection refused"
CUT_LOOSE = "broken: server closed the connection"
"""By the pool itself, as the server does not stir."""
