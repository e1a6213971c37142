"""An assistant, as far as an MCP server can tell: it asks for tools and calls them, over streamable HTTP."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 20.0  # seconds: reached only by a test that fails


class Assistant:
    """Has a session from ``with`` to its end."""

    def __init__(self, address: str, path: str) -> None:
        self._address, self._path = address, path
        self._ids = count(1)
        self._session = ""

    def __enter__(self) -> Self:
        client = {"name": "tests", "version": "0"}
        self._ask("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    def __exit__(self, *_exc: object) -> None:
        self._request("DELETE")

    def tools(self) -> set[str]:
        """Return the names of the tools that it is offered."""
        return {tool["name"] for tool in self._ask("tools/list")["tools"]}

    def call(self, tool: str, **arguments: object) -> str:
        """Call a tool; return the text of its answer."""
        answer = self._ask("tools/call", name=tool, arguments=arguments)
        assert not answer.get("isError"), answer
        (content,) = answer["content"]
        return str(content["text"])

    def _ask(self, method: str, **params: object) -> Any:
        body = self._send({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})
        events = [json.loads(line.removeprefix("data:")) for line in body.splitlines() if line.startswith("data:")]
        (answer,) = [event for event in events if "id" in event]
        assert "result" in answer, answer
        return answer["result"]

    def _send(self, message: dict[str, object]) -> str:
        return self._request("POST", json.dumps(message))

    def _request(self, method: str, body: str = "") -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self._session:
            headers["Mcp-Session-Id"] = self._session
        with closing(HTTPConnection(self._address, timeout=PATIENCE)) as connection:
            connection.request(method, self._path, body, headers)
            response = connection.getresponse()
            self._session = response.getheader("Mcp-Session-Id") or self._session
            text = response.read().decode()
            assert response.status < 300, f"{response.status} {text}"
            return text
