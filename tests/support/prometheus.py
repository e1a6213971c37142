"""A real Prometheus on this machine, with the repository's configuration and rules."""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import yaml

from tests.support.external_programs import find_program, free_ports
from tests.support.stack_files import ROOT, load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from typing_extensions import Self

PATIENCE = 20.0  # seconds: reached only by a test that fails
OTLP_SINCE = 3
"""The major version that has the OTLP receiver which the stack uses."""
CONVERTS_SINCE = (3, 4)
"""The version that makes native histograms of classic ones which it receives."""


def find_promtool() -> Path:
    """Return the promtool beside the Prometheus that is found."""
    return find_program("prometheus").with_name("promtool")


def promtool(*arguments: str | Path) -> str:
    """Return what promtool prints; it must succeed."""
    done = subprocess.run([find_promtool(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_version() -> tuple[int, ...]:
    """Of the Prometheus that is found."""
    shown = subprocess.run([find_program("prometheus"), "--version"], capture_output=True, text=True, check=True)
    match = re.search(r"version (\d+)\.(\d+)", shown.stdout + shown.stderr)
    assert match
    return tuple(map(int, match.groups()))


class Prometheus:
    """As a context manager it runs, with its data in a folder that is given, and is ended.

    Args:
        folder: its folder.
        converts: whether it makes native histograms of classic ones.
    """

    def __init__(self, folder: Path, *, converts: bool = False) -> None:
        self._converts = converts
        self._program = find_program("prometheus")
        self._folder = folder
        self.receives_otlp = find_version() >= (OTLP_SINCE,)
        self._open = build_opener(ProxyHandler({})).open
        (port,) = free_ports(1)
        self._address = f"127.0.0.1:{port}"

    def __enter__(self) -> Self:
        command: list[str | Path] = [self._program, f"--config.file={self._configuration()}", "--log.level=warn"]
        command += [f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address={self._address}"]
        # From 3.9 on, native histograms need no option.
        command += ["--storage.tsdb.retention.time=7d", "--enable-feature=exemplar-storage,native-histograms"]
        command += [f"--web.external-url=http://{self._address}", f"--web.user-assets={ROOT / 'docs'}"]
        command += ["--web.enable-otlp-receiver"] if self.receives_otlp else []
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()  # its data goes with it
        self._process.wait()

    def _configuration(self) -> Path:
        """Return the repository's configuration, without what is not available here or unknown to this version."""
        content = load("prometheus/prometheus.yaml")
        del content["scrape_configs"]
        if not self.receives_otlp:
            del content["otlp"]
        elif self._converts:
            content["otlp"]["convert_histograms_to_nhcb"] = True
        content["rule_files"] = [str(ROOT / "prometheus" / file) for file in content["rule_files"]]
        file = self._folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._open(f"http://{self._address}/-/ready", timeout=1).close()
            except OSError:  # not only of urllib's: whoever answers late has its own
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.02)
            else:
                return

    def receive(self, requests: Iterable[ExportMetricsServiceRequest]) -> None:
        """Send it OTLP, in the order that is given."""
        url = f"http://{self._address}/api/v1/otlp/v1/metrics"
        for request in requests:
            headers = {"Content-Type": "application/x-protobuf"}
            self._open(Request(url, request.SerializeToString(), headers), timeout=PATIENCE).close()

    def get(self, path: str) -> str:
        """Return the text of a page."""
        with self._open(f"http://{self._address}{path}", timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
        return text

    def ask(self, endpoint: str, **parameters: Any) -> Any:
        """Return the answer of an endpoint of the API, which must not warn."""
        query = urlencode({name.rstrip("_"): value for name, value in parameters.items()}, doseq=True)
        try:
            answer = self._open(f"http://{self._address}/api/v1/{endpoint}?{query}", timeout=PATIENCE)
        except URLError as error:
            told = error.read().decode() if hasattr(error, "read") else ""
            raise AssertionError(f"{endpoint} {parameters}: {error} {told}") from None
        with answer:
            content = json.load(answer)
        assert not content.get("warnings"), (endpoint, parameters, content["warnings"])
        return content["data"]

    def over_time(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the series of an expression."""
        return self.ask("query_range", query=expression, start=start, end=end, step=step)["result"]
