"""What Django and its users expect of a database backend, asked of the pooled one; run by Django's own test runner."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from django.core.signals import request_finished
from django.db import connection, transaction
from django.db.utils import Error, OperationalError, ProgrammingError
from django.test import TestCase, TransactionTestCase
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from otel_pgpool import PoolTimeout
from shop.models import Order

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool import ConnectionPool


def the_pool() -> ConnectionPool:
    [pool] = connection.pools.values()
    return pool


def ask(question: str, *values: object) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(f"select {question}", values)
        return cursor.fetchone()[0]


def backend() -> int:
    pid: int = ask("pg_backend_pid()")
    return pid


def elsewhere(action: Callable[..., Any], *args: Any) -> Any:
    """Do it in a thread of its own, which gives back what it used."""

    def do() -> Any:
        try:
            return action(*args)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(do).result()


class OutOfStockError(Exception):
    """What a program may raise."""


def fail_after(action: Callable[..., Any], **options: Any) -> None:
    """Do it in a transaction, and fail."""
    with suppress(OutOfStockError), transaction.atomic():
        action(**options)
        raise OutOfStockError


class InATransaction(TestCase):
    """Each test in a transaction that is rolled back: Django keeps one connection for the whole class."""

    def test_one_starts_empty(self) -> None:
        Order.objects.create(amount=1)
        assert Order.objects.count() == 1

    def test_the_other_starts_empty(self) -> None:
        Order.objects.create(amount=1)
        assert Order.objects.count() == 1


class OnItsOwn(TransactionTestCase):
    def tearDown(self) -> None:
        connection.close()
        assert the_pool().stats().used == 0

    def test_a_request_gives_back_at_its_end(self) -> None:
        pid = backend()
        assert the_pool().stats().used == 1
        request_finished.send(None)
        assert connection.connection is None
        assert the_pool().stats().used == 0
        assert backend() == pid  # the same connection again, not a new one

    def test_work_outside_of_a_transaction_is_committed_at_once(self) -> None:
        Order.objects.create(amount=1)
        assert connection.connection.get_transaction_status() == TRANSACTION_STATUS_IDLE
        assert elsewhere(Order.objects.count) == 1

    def test_a_transaction_is_committed_or_rolled_back(self) -> None:
        with transaction.atomic():
            Order.objects.create(amount=1)
            fail_after(Order.objects.create, amount=2)
            assert elsewhere(Order.objects.count) == 0
        assert elsewhere(Order.objects.count) == 1
        fail_after(Order.objects.create, amount=3)
        assert [order.amount for order in Order.objects.all()] == [1]

    def test_a_return_inside_a_transaction_loses_its_work_and_leaves_the_connection_clean(self) -> None:
        with suppress(ProgrammingError), transaction.atomic():
            Order.objects.create(amount=1)
            connection.close()
            assert the_pool().stats().used == 0
            Order.objects.count()
            pytest.fail("it went on")
        assert Order.objects.count() == 0
        assert connection.get_autocommit()

    def test_autocommit_may_be_switched_off(self) -> None:
        transaction.set_autocommit(False)
        Order.objects.create(amount=1)
        connection.close()  # as at the end of a request: neither committed
        assert Order.objects.count() == 0
        assert connection.get_autocommit()

    def test_sessions_are_set_up_as_the_settings_say(self) -> None:
        for _ in range(2):  # a new connection, and one that was used before
            assert ask("current_setting('timezone')") == "Europe/Berlin"
            with transaction.atomic():
                assert ask("current_setting('transaction_isolation')") == "repeatable read"
            connection.close()

    def test_json_and_server_side_cursors_work(self) -> None:
        Order.objects.create(amount=1, lines=[1, {"two": 2}])
        assert [order.lines for order in Order.objects.iterator()] == [[1, {"two": 2}]]

    def test_threads_share_the_pool(self) -> None:
        connection.close()
        with ThreadPoolExecutor(12) as executor:
            pids = set(executor.map(elsewhere, [backend] * 60))
        assert len(pids) <= 3

    def test_a_thread_that_forgets_to_close_loses_nothing(self) -> None:
        connection.close()
        thread = threading.Thread(target=backend)
        thread.start()
        thread.join()
        gc.collect()
        every = [the_pool().getconn(timeout=20) for _ in range(3)]  # as many as there may be
        for conn in every:
            the_pool().putconn(conn)

    def test_an_exhausted_pool_is_an_error_of_django(self) -> None:
        with patch.dict(connection.settings_dict["POOL"], minconn=3, timeout=0):
            connection.close_pool()
            backend()
            connection.close()
        held = [the_pool().getconn() for _ in range(3)]
        with pytest.raises(Error) as caught:
            backend()
        assert isinstance(caught.value.__cause__, PoolTimeout)
        for conn in held:
            the_pool().putconn(conn)
        connection.close_pool()
        backend()

    def test_a_broken_connection_is_replaced(self) -> None:
        pid = backend()
        elsewhere(ask, "pg_terminate_backend(%s)", pid)
        with pytest.raises(OperationalError):
            backend()
        request_finished.send(None)
        assert backend() != pid
