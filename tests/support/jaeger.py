"""The Jaeger that ``JAEGER`` names, and what its search page asks it for.

with Jaeger(tmp_path) as jaeger:
    jaeger.search(f"http://{jaeger.ui}/search?service=shop&lookback=1h")
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import ProxyHandler, build_opener

import yaml

from tests.support.assistant import Assistant
from tests.support.external_programs import HOST, free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

BINARY = os.environ.get("JAEGER", "")
PATIENCE = 20.0  # seconds: reached only by a test that fails
MINUTES = {"m": 1, "h": 60, "d": 60 * 24, "w": 60 * 24 * 7}
LOOKBACKS = {"5m", "15m", "30m", "1h", "2h", "3h", "6h", "12h", "24h", "2d", "3d", "5d", "7d", "2w", "3w", "4w"}
"""Those that the page offers, and takes from an address."""
NAMES = {
    "service": "query.serviceName",
    "operation": "query.operationName",
    "limit": "query.searchDepth",
    "minDuration": "query.durationMin",
    "maxDuration": "query.durationMax",
    "tags": "query.attributes",
}
"""What the page's address says, as it is asked for."""


def asked_for(address: str) -> dict[str, str]:
    """Return what the search page of Jaeger 2.20 requests when an address is opened."""
    shown = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    asked = {NAMES[name]: value for name, value in shown.items() if name in NAMES}
    if (lookback := shown.get("lookback")) in LOOKBACKS:
        now = datetime.now(timezone.utc)
        ago = timedelta(minutes=int(lookback[:-1]) * MINUTES[lookback[-1]])
        asked["query.startTimeMin"], asked["query.startTimeMax"] = (now - ago).isoformat(), now.isoformat()
    elif shown.get("start") and shown.get("end"):
        for name, value in (("query.startTimeMin", shown["start"]), ("query.startTimeMax", shown["end"])):
            asked[name] = datetime.fromtimestamp(int(value) / 1e6, timezone.utc).isoformat()
    return asked


class Jaeger:
    """Runs from ``with`` to its end on free ports, what it is sent in its memory."""

    def __init__(self, folder: Path, skills: Path | None = None) -> None:
        otlp, ui, query = (f"{HOST}:{port}" for port in free_ports(3))
        self.otlp, self.ui = otlp, ui
        self._folder = folder
        mcp = {"skills_dir": str(skills)} if skills else {}
        self._open = build_opener(ProxyHandler({})).open
        self._configuration = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": otlp}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 1000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": ui},
                    "grpc": {"endpoint": query},
                    "ai": {"mcp": mcp},
                },
            },
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            },
        }

    def __enter__(self) -> Self:
        file, log = self._folder / "jaeger.yaml", self._folder / "log"
        file.write_text(yaml.safe_dump(self._configuration))
        with log.open("wb") as output:
            self._process = subprocess.Popen([BINARY, f"--config={file}"], stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + PATIENCE
            while not self._is_up():
                assert self._process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()  # what it holds goes with it
        self._process.wait()

    def assistant(self) -> Assistant:
        """Return what asks its MCP server."""
        return Assistant(self.ui, "/api/ai/mcp/")

    def search(self, address: str) -> set[str]:
        """Open an address of its search page: the ids of the traces that are shown."""
        self._open(address, timeout=PATIENCE).close()
        parts = urlsplit(address)
        found = self._ask(f"http://{parts.netloc}/api/v3/trace-summaries?{urlencode(asked_for(address))}")
        return {each["traceId"] for each in found.get("summaries", ())}

    def _ask(self, address: str) -> Any:
        try:
            with self._open(address, timeout=PATIENCE) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise AssertionError(f"{address}: {error} {error.read().decode()}") from None

    def _is_up(self) -> bool:
        try:
            self._open(f"http://{self.ui}/api/v3/services", timeout=1).close()
        except (URLError, ConnectionError, TimeoutError):
            return False
        return True
