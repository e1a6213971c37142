"""examples/shop as `make shop` starts it: a process tree of its own, whose telemetry arrives at a receiver."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from psycopg2.extensions import parse_dsn

from tests.support.external_programs import free_ports
from tests.support.processes import arguments_of_all
from tests.support.receivers import GrpcReceiver
from tests.support.stack_files import ROOT
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.otlp_views import Span

pytestmark = pytest.mark.timeout(120)

BLOCKED_BY = {"otel_pgpool.relation": "blocked_by"}
OPENS_WITHIN, CLOSES_WITHIN = 30.0, 20.0  # seconds


class Shop:
    """One that runs, at an address of its own."""

    def __init__(self, address: str, process: subprocess.Popen[str]) -> None:
        self._address = address
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def get(self, path: str) -> str:
        with urlopen(f"http://{self._address}{path}", timeout=20) as answer:
            return str(answer.read().decode())

    def post(self, path: str, data: bytes = b"") -> str:
        with urlopen(f"http://{self._address}{path}", data, timeout=20) as answer:
            return str(answer.read().decode())

    def wait_until_open(self) -> None:
        deadline = time.monotonic() + OPENS_WITHIN
        while True:
            try:
                self.get("/healthz")
            except OSError:  # not only of urllib's: whoever answers late has its own
                assert self._process.poll() is None, self._process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                return

    def close(self) -> tuple[int, str]:
        """Press Ctrl-C, which a terminal sends to every program of the group; its exit status and what it printed."""
        os.killpg(self._process.pid, signal.SIGINT)
        printed, _ = self._process.communicate(timeout=CLOSES_WITHIN)
        return self._process.returncode, printed


@contextmanager
def open_shop(receiver: GrpcReceiver) -> Iterator[Shop]:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    environment = {
        **os.environ,
        **receiver.environ,
        "BIND": address,
        "HOME": os.devnull,  # nothing can be written there
        "XDG_RUNTIME_DIR": "",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
    }
    process = subprocess.Popen(
        [sys.executable, ROOT / "examples/shop/run.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    shop = Shop(address, process)
    try:
        shop.wait_until_open()
        yield shop
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=CLOSES_WITHIN)


@pytest.fixture(scope="module")
def receiver() -> Iterator[GrpcReceiver]:
    with GrpcReceiver() as receiver:
        yield receiver


# First the tests that do not share the shop, which would be busy with its customers meanwhile


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes tell their environment here alone")
def test_the_servers_password_is_told_nowhere(receiver: GrpcReceiver) -> None:
    """Gunicorn has it, in its environment; it is in no argument of a process, neither printed nor sent."""
    with open_shop(receiver) as shop:
        shop.post("/", b"product=3")
        told = [(command, find_url(environment)) for command, environment in children_of(shop.pid)]
        arguments = arguments_of_all()
        status, printed = shop.close()
    assert status == 0, printed
    ((command, url),) = [each for each in told if each[1]]
    assert "gunicorn" in command
    password = parse_dsn(url)["password"]
    assert any("load.py" in command for command, _none in told)
    assert receiver.spans
    for text in (arguments, printed, f"{receiver.spans}{receiver.metrics}{receiver.logs}"):
        assert password not in text


def children_of(pid: int) -> Iterator[tuple[str, str]]:
    """Arguments and environment of each process that this one has started."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                yield (process / "cmdline").read_text(), (process / "environ").read_text()


def find_url(environment: str) -> str:
    return "".join(re.findall(r"(?:^|\0)DATABASE_URL=([^\0]*)", environment))


def test_a_port_that_is_taken_ends_it() -> None:
    """The shop says so and ends, and leaves no customers behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**os.environ, "BIND": f"127.0.0.1:{taken.getsockname()[1]}"}
        ended = subprocess.run(
            [sys.executable, ROOT / "examples/shop/run.py"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert ended.returncode != 0
    assert "in use" in ended.stderr


@pytest.fixture(scope="module")
def shop(receiver: GrpcReceiver) -> Iterator[Shop]:
    with open_shop(receiver) as shop:
        yield shop
        status, printed = shop.close()
    assert status == 0, printed
    assert "Traceback" not in printed
    assert "[ERROR]" not in printed
    with pytest.raises(URLError):
        shop.get("/healthz")


def test_queries_are_children_of_their_checkouts_and_these_of_requests(shop: Shop, receiver: GrpcReceiver) -> None:
    """An order's trace: the request, its checkout, the statements inside."""
    shop.post("/", b"product=3")

    def whole_trace(receiver: GrpcReceiver) -> bool:
        spans = {span.span_id: span for span in receiver.spans}
        inserts = [span for span in spans.values() if span.name == "insert"]
        for insert in inserts:
            checkout = spans.get(insert.parent_span_id)
            if checkout is not None and checkout.name == "pool.checkout":
                request = spans.get(checkout.parent_span_id)
                if request is not None and request.name == "POST /":
                    return True
        return False

    receiver.wait_for(whole_trace)


def test_it_is_no_superuser(receiver: GrpcReceiver, shop: Shop) -> None:
    """It logs in as the role that it has in the stack."""
    shop.get("/")
    receiver.wait_for(lambda r: {span.attributes["db.user"] for span in r.spans if "db.user" in span.attributes})
    assert {span.attributes["db.user"] for span in receiver.spans if "db.user" in span.attributes} == {"shop"}


def listed(page: str) -> dict[int, str]:
    """Return the orders on a page: their products by their numbers."""
    return {int(number): product for number, product in re.findall(r"<tr><td>(\d+)<td>([^<]+)<td>", page)}


def test_an_order_is_on_the_page(shop: Shop) -> None:
    """What was ordered is listed, with what else there is to do."""

    def is_listed() -> bool:
        before = max(listed(shop.get("/")), default=0)
        page = shop.post("/", b"product=7")
        assert "Switch the leak on" in page
        return "Product 7" in {product for number, product in listed(page).items() if number > before}

    assert wait_until(is_listed)  # at once, unless ten others have ordered before the page was made


def test_the_page_says_that_its_forms_have_no_tokens(shop: Shop) -> None:
    assert "no CSRF tokens" in shop.get("/")


def test_a_slow_report_is_flagged(shop: Shop, receiver: GrpcReceiver) -> None:
    """The report holds its connection for over a second: a span and a log record say so."""
    assert '"orders"' in shop.get("/report")
    receiver.wait_for(lambda r: any(span.attributes.get("otel_pgpool.long_hold") is True for span in r.spans))
    receiver.wait_for(lambda r: any(log.attributes.get("otel_pgpool.event") == "long_hold" for log in r.logs))


def test_a_locked_product_makes_orders_wait_in_the_database(shop: Shop, receiver: GrpcReceiver) -> None:
    """The recount holds the lock, with its transaction open and no statement at work."""
    shop.post("/recount")
    in_transaction = {"otel_pgpool.event": "long_hold", "otel_pgpool.transaction.status": "in_transaction"}
    receiver.wait_for(lambda r: any(log.attributes.items() >= in_transaction.items() for log in r.logs))


def test_a_cancellation_leads_to_the_payment_that_blocks_it(shop: Shop, receiver: GrpcReceiver) -> None:
    """Its checkout says that it waits for a lock, and of which table, and links to the payment's checkout."""

    def blocked(receiver: GrpcReceiver) -> list[Span]:
        """Return the checkouts that waited for an order; others may have waited for a product."""
        waited = [span for span in receiver.spans if any(link.attributes == BLOCKED_BY for link in span.links)]
        return [span for span in waited if answers(span)[-1]["postgresql.blocking.lock.relation"] == "shop.orders"]

    def answers(span: Span) -> list[Any]:
        return [event.attributes for event in span.events if event.name == "pool.database_state"]

    seconds = 0.0
    while seconds < 2:  # on a busy machine the cancellation may come first
        shop.post("/", b"product=3")
        payment = in_thread(shop.post, "/payment")
        shop.get("/")
        began = time.monotonic()
        shop.post("/cancellation")
        seconds = time.monotonic() - began
        payment.result(PATIENCE)
    receiver.wait_for(blocked)
    span = blocked(receiver)[0]
    told = answers(span)[-1]
    assert (told["postgresql.state"], told["postgresql.wait_event_type"]) == ("active", "Lock")
    receiver.wait_for(lambda r: {link.span_id for link in span.links} <= {each.span_id for each in r.spans})
    spans = {each.span_id: each for each in receiver.spans}
    blocker = spans[span.links[0].span_id]
    assert [spans[each.parent_span_id].name for each in (span, blocker)] == ["POST /cancellation", "POST /payment"]


def test_the_leak_shows_until_it_is_switched_off(shop: Shop, receiver: GrpcReceiver) -> None:
    """While it is on, connections stay out and the oldest hold grows; switched off, it gives them back."""

    def oldest_hold(receiver: GrpcReceiver) -> list[float]:
        return [point.value for point in receiver.metrics if point.name == "otel_pgpool.oldest_hold"]

    def is_switched_on() -> bool:
        try:
            return "Switch the leak off" in shop.post("/leak")
        except HTTPError:  # it has taken every connection before the page was made
            shop.post("/leak")
            return False

    assert wait_until(is_switched_on)
    try:
        receiver.wait_for(lambda r: max(oldest_hold(r), default=0) > 3)
    finally:
        shop.post("/leak")
    receiver.clear()
    receiver.wait_for(lambda r: oldest_hold(r)[-1:] and oldest_hold(r)[-1] < 3)
