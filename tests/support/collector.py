"""The configurations of ``collector-config/``, read as YAML, and run by the Collector that ``OTELCOL`` names.

    with Collector("collector.yaml", tmp_path, JAEGER_ENDPOINT=receiver.endpoint) as collector:
        send(collector.grpc)

A running one differs from its file in what two tests at once could not share: ports and the folder of its queues.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from tests.support.external_programs import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "collector-config"
FILES = ("collector.yaml", "agent.yaml", "gateway.yaml")
TLS = {"agent.yaml": "agent-tls.yaml", "gateway.yaml": "gateway-tls.yaml"}
"""What is laid over a file where the network is not private."""
BINARY = os.environ.get("OTELCOL", "")
QUICK = {"processors": {"tail_sampling": {"decision_wait": "1s"}}}

# All whom a file sends to or asks. Its defaults are where the machine's own may listen; here nobody does.
HOST, PORT = "127.0.0.1", "1"
NOWHERE = f"{HOST}:{PORT}"
NEEDED = {
    "GATEWAY_HOST": HOST,
    "GATEWAY_PORT": PORT,
    "JAEGER_ENDPOINT": NOWHERE,
    "POSTGRES_ENDPOINT": NOWHERE,
    "PROMETHEUS_ENDPOINT": f"http://{NOWHERE}",
}


def load(name: str) -> dict[str, Any]:
    """One file, its ``${env:...}`` as they stand there."""
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def backend_overlay() -> dict[str, Any]:
    """Return the file that the README puts over another to send to another backend."""
    block = (FOLDER / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    loaded: dict[str, Any] = yaml.safe_load(block)
    return loaded


def wait_until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    """Return when the condition holds, asked every 20 ms; AssertionError after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.02)


class Collector:
    """A Collector on free ports of 127.0.0.1, its queues in ``folder``, from ``with`` to its end or ``kill()``."""

    def __init__(self, name: str, folder: Path, *more: dict[str, Any], **environ: str) -> None:
        folder.mkdir(exist_ok=True)
        grpc, http, health, own = free_ports(4)
        self.grpc, self.http = f"127.0.0.1:{grpc}", f"http://127.0.0.1:{http}"
        self._health, self._own = f"http://127.0.0.1:{health}/", f"http://127.0.0.1:{own}/metrics"
        self._log = folder / "log"
        self._environ = {**os.environ, **NEEDED, **environ}
        queues = str(folder / "queues")
        ours = {
            "receivers": {
                "otlp": {"protocols": {"grpc": {"endpoint": self.grpc}, "http": {"endpoint": self.http[7:]}}}
            },
            "extensions": {
                "health_check": {"endpoint": self._health[7:-1]},
                "file_storage": {"directory": queues, "compaction": {"directory": queues}},
            },
            "service": {
                "telemetry": {
                    "metrics": {
                        "readers": [{"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": own}}}}],
                    }
                }
            },
        }
        self._command = [BINARY, f"--config={FOLDER / name}"]
        for number, overlay in enumerate((ours, *more)):
            path = folder / f"overlay-{number}.yaml"
            path.write_text(yaml.safe_dump(overlay))
            self._command.append(f"--config={path}")

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            log = undo.enter_context(self._log.open("ab"))
            self._process = subprocess.Popen(self._command, env=self._environ, stdout=log, stderr=log)
            undo.callback(self.kill)
            wait_until(self._is_up)
            undo.pop_all()
            log.close()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def own_metric(self, name: str, **labels: str) -> float:
        """Sum of a metric of its own over all series that have these labels."""
        with urlopen(self._own, timeout=5) as answer:  # noqa: S310 - its own address
            lines = answer.read().decode().splitlines()
        return sum(
            float(value)
            for series, value in (line.rsplit(" ", 1) for line in lines if re.match(rf"{name}[ {{]", line))
            if all(f'{label}="{wanted}"' in series for label, wanted in labels.items())
        )

    def _is_up(self) -> bool:
        assert self._process.poll() is None, f"it ended by itself:\n{self.log}"
        try:
            with urlopen(self._health, timeout=1):  # noqa: S310 - its own address
                return True
        except (URLError, ConnectionError, TimeoutError):
            return False
