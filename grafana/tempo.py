"""The dashboard for traces in Tempo: the links of the one for Jaeger, as searches in Grafana's Explore."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

VARIABLE = re.compile(r"(\$\{[^}]*\})")
"""What Grafana replaces before it follows a link."""

SOURCE = {"type": "tempo", "uid": "tempo"}
"""Tempo's data source, as the image grafana/otel-lgtm names it."""

INTRINSIC = {"error=true": "status = error"}
EVENT = "postgresql."
"""What the names of the event's attributes begin with."""


def traceql(operation: str, tags: dict[str, str]) -> str:
    """Return the query for what Jaeger's search finds in a service by an operation and tags."""
    wanted = ['resource.service.name = "${__field.labels.job}"', f'name = "{operation}"']
    for name, value in tags.items():
        scope = "event" if name.startswith(EVENT) else "span"
        literal = value if value in {"true", "false"} else f'"{value}"'
        wanted.append(INTRINSIC.get(f"{name}={value}", f"{scope}.{name} = {literal}"))
    return f"{{ {' && '.join(wanted)} }}"


def explore(query: str, since: str, until: str) -> str:
    """Return the address of a search in Explore, with Grafana's variables left as they are."""
    asked = {"refId": "A", "datasource": SOURCE, "queryType": "traceql", "query": query}
    pane = {"datasource": SOURCE["uid"], "queries": [asked], "range": {"from": since, "to": until}}
    shown = json.dumps({"a": pane}, separators=(",", ":"))
    quoted = "".join(part if VARIABLE.fullmatch(part) else quote(part, safe="") for part in VARIABLE.split(shown))
    return f"/explore?schemaVersion=1&orgId=1&panes={quoted}"


def search(address: str) -> str:
    """Return the address in Explore for one of Jaeger's search page."""
    asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    return explore(traceql(asked["operation"], json.loads(asked["tags"])), "${__from}", "${__to}")


def in_tempo(dashboard: str) -> str:
    """Return the dashboard with its links into Tempo, and without the variable of Jaeger's address."""
    converted: dict[str, Any] = json.loads(dashboard.replace("Jaeger", "Tempo"))
    variables = converted["templating"]
    variables["list"] = [variable for variable in variables["list"] if variable["name"] != "jaeger"]
    for panel in converted["panels"]:
        for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", ()):
            link["url"] = search(link["url"])
    return json.dumps(converted, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
