"""agent-tls.yaml and gateway-tls.yaml in real Collectors: nobody unknown sends, or is sent to."""

from __future__ import annotations

import ssl
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.collector import BINARY, FOLDER, QUICK, Collector, load, wait_until
from tests.support.collector_targets import Targets, open_targets
from tests.support.otlp_sender import program

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not BINARY, reason="OTELCOL names no Collector to run")

GATEWAYS = "gateways.internal"
"""The name that gateways' certificates have; the address at which they are called is no part of these."""


class Authority:
    """Signs certificates, which lie beside one another as files."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir()
        self._ca.cert_pem.write_to_path(str(folder / "ca.pem"))

    def certify(self, name: str) -> dict[str, str]:
        """Return the variables of a Collector with a certificate of that name."""
        issued = self._ca.issue_cert(name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return {
            "TLS_CA_FILE": str(self._folder / "ca.pem"),
            "TLS_CERT_FILE": str(certificate),
            "TLS_KEY_FILE": str(key),
        }


class Fleet(NamedTuple):
    """A gateway, and who has signed its certificate."""

    gateway: Collector
    authority: Authority
    stranger: Authority
    targets: Targets
    folder: Path


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    authority, stranger = Authority(tmp_path / "authority"), Authority(tmp_path / "stranger")
    with open_targets() as targets:
        environ = {**targets.environ, **authority.certify(GATEWAYS)}
        with Collector("gateway.yaml", tmp_path / "gateway", load("gateway-tls.yaml"), QUICK, **environ) as gateway:
            yield Fleet(gateway, authority, stranger, targets, tmp_path)


def agent(fleet: Fleet, name: str = GATEWAYS, **files: str) -> Collector:
    """Return an agent of that fleet, which calls the gateway by its address."""
    at = {"resolver": {"dns": None, "static": {"hostnames": [fleet.gateway.grpc]}}}
    overlay = {"exporters": {"loadbalancing/trace": at, "loadbalancing/process": at}}
    return Collector("agent.yaml", fleet.folder / "agent", load("agent-tls.yaml"), overlay, GATEWAY_HOST=name, **files)


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def send(channel: grpc.Channel) -> None:
    """Send nothing over a channel, which is closed then."""
    with channel:
        stub = trace_service_pb2_grpc.TraceServiceStub(channel)
        stub.Export(trace_service_pb2.ExportTraceServiceRequest(), timeout=10)


def export(fleet: Fleet, **files: str) -> None:
    """Send the gateway nothing, over gRPC, as a client with these files."""
    ours = [content(files[name]) if name in files else None for name in ("TLS_KEY_FILE", "TLS_CERT_FILE")]
    credentials = grpc.ssl_channel_credentials(content(files["TLS_CA_FILE"]), *ours)
    send(grpc.secure_channel(fleet.gateway.grpc, credentials, (("grpc.ssl_target_name_override", GATEWAYS),)))


def post(fleet: Fleet, **files: str) -> int:
    """Send it nothing over HTTP; the status."""
    context = ssl.create_default_context(cafile=files["TLS_CA_FILE"])
    context.check_hostname = False  # it is called by its address
    if "TLS_CERT_FILE" in files:
        context.load_cert_chain(files["TLS_CERT_FILE"], files["TLS_KEY_FILE"])
    with closing(HTTPSConnection(fleet.gateway.http.removeprefix("http://"), timeout=10, context=context)) as conn:
        conn.request("POST", "/v1/traces", b"", {"Content-Type": "application/x-protobuf"})
        return conn.getresponse().status


def test_what_an_agent_sends_arrives(fleet: Fleet) -> None:
    """Traces, metrics and logs, though the gateway's certificate names no address."""
    with agent(fleet, **fleet.authority.certify("agent")) as sending, program(sending) as sender:
        sent = sender.checkout(long_hold=True)
        sender.meters.get_meter("shop").create_counter("shop.sent").add(1)
        sender.log("shop", "held for long", {})
        sender.flush()
        fleet.targets.jaeger.wait_for(lambda r: [span.trace_id for span in r.spans] == [sent])
        fleet.targets.prometheus.wait_for(lambda r: [point.name for point in r.metrics] == ["shop.sent"])
        wait_until(lambda: "held for long" in fleet.gateway.log)


def test_who_has_a_certificate_is_taken(fleet: Fleet) -> None:
    """Over both protocols."""
    files = fleet.authority.certify("agent")
    export(fleet, **files)
    assert post(fleet, **files) == 200


@pytest.mark.parametrize("has", ["none", "a stranger's"])
def test_who_has_no_certificate_is_refused(fleet: Fleet, has: str) -> None:
    """Or has one that somebody else has signed; over both protocols."""
    files = {"TLS_CA_FILE": fleet.authority.certify("agent")["TLS_CA_FILE"]}
    if has == "a stranger's":
        files = fleet.stranger.certify("agent") | files
    with pytest.raises(grpc.RpcError) as refused:
        export(fleet, **files)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(OSError, match=r"certificate required|unknown ca"):
        post(fleet, **files)


def test_who_speaks_without_tls_is_refused(fleet: Fleet) -> None:
    with pytest.raises(grpc.RpcError):
        send(grpc.insecure_channel(fleet.gateway.grpc))


@pytest.mark.parametrize("fault", ["another name", "another authority"])
def test_an_agent_sends_to_no_gateway_that_it_does_not_know(fleet: Fleet, fault: str) -> None:
    """Nothing arrives from it, and its log says why."""
    files, name = fleet.authority.certify("agent"), GATEWAYS
    if fault == "another name":
        name = "elsewhere.internal"
    else:
        files["TLS_CA_FILE"] = fleet.stranger.certify("agent")["TLS_CA_FILE"]
    with agent(fleet, name, **files) as sending, program(sending) as sender:
        sender.checkout(long_hold=True)
        sender.flush()
        wait_until(lambda: "tls: failed to verify certificate" in sending.log)
    assert not fleet.targets.jaeger.spans


def test_the_readme_says_how_they_are_laid_over() -> None:
    readme = (FOLDER / "README.md").read_text()
    for file in ("agent", "gateway"):
        assert f"otelcol-contrib --config={file}.yaml --config={file}-tls.yaml\n" in readme
