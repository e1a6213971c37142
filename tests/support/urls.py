"""DSNs as URLs, for programs and engines."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from psycopg2.extensions import parse_dsn


def url_of(dsn: str, *, scheme: str = "postgresql", **changes: str | int | None) -> str:
    """Write a DSN of any form as a URL, its password included; a change of None leaves a parameter out."""
    place = {name: str(value) for name, value in {**parse_dsn(dsn), **changes}.items() if value is not None}
    user, password, host, port, dbname = (
        quote(place.pop(name, ""), safe="") for name in ("user", "password", "host", "port", "dbname")
    )
    login = f"{user}:{password}" if password else user
    query = f"?{urlencode(place, quote_via=quote)}" if place else ""
    return f"{scheme}://{login}@{host}:{port}/{dbname}{query}"
