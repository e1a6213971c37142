"""Customers of the shop, who never stop: ``python load.py http://127.0.0.1:8000``."""

from __future__ import annotations

import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress

CUSTOMERS = 10
CYCLE = 60.0
"""Seconds after which the day begins again."""
BETWEEN_REPORTS, BETWEEN_RECOUNTS, BETWEEN_PAYMENTS = 15.0, 20.0, 25.0
RUSH = 40.0
"""From this second of a cycle on, customers do not pause between two requests, and more of them come."""
RUSH_CUSTOMERS = 20

answers: Counter[str] = Counter()
began = time.monotonic()


def ask(shop: str, path: str, data: bytes | None = None) -> None:
    """Send one request, and count its answer."""
    try:
        with urllib.request.urlopen(f"{shop}{path}", data, timeout=30) as answer:  # nosec B310 # noqa: S310 - the shop's address
            answers[str(answer.status)] += 1
    except urllib.error.HTTPError as error:
        answers[str(error.code)] += 1
    except OSError as error:
        answers[type(error).__name__] += 1
        time.sleep(1)  # the shop is not there


def is_rush() -> bool:
    """Whether it is the busy part of the cycle."""
    return (time.monotonic() - began) % CYCLE > RUSH


def buy(shop: str, *, in_rush_only: bool) -> None:
    """Browse and order."""
    while True:
        if in_rush_only and not is_rush():
            time.sleep(0.5)
            continue
        ask(shop, "/")
        ask(shop, "/", f"product={random.randint(1, 20)}".encode())  # nosec B311 # chance, no secret
        if not is_rush():
            time.sleep(random.uniform(0.1, 0.5))  # nosec B311 # likewise


def work_in_the_office(shop: str, path: str, data: bytes | None, pause: float) -> None:
    """Ask for something slow, again and again."""
    while True:
        time.sleep(pause)
        ask(shop, path, data)


def pay_and_cancel(shop: str) -> None:
    """Pay the oldest order, again and again, and cancel it while it is being paid."""
    while True:
        time.sleep(BETWEEN_PAYMENTS)
        payment = threading.Thread(target=ask, args=(shop, "/payment", b""), daemon=True)
        payment.start()
        time.sleep(0.1)
        ask(shop, "/cancellation", b"")
        payment.join()


def main(shop: str) -> None:
    """Send everybody to the shop, and say every ten seconds how they were answered."""
    for number in range(CUSTOMERS + RUSH_CUSTOMERS):
        guest = {"in_rush_only": number >= CUSTOMERS}
        threading.Thread(target=buy, args=(shop,), kwargs=guest, daemon=True).start()
    for work in (("/report", None, BETWEEN_REPORTS), ("/recount", b"", BETWEEN_RECOUNTS)):
        threading.Thread(target=work_in_the_office, args=(shop, *work), daemon=True).start()
    threading.Thread(target=pay_and_cancel, args=(shop,), daemon=True).start()
    while True:
        time.sleep(10)
        print("answers:", ", ".join(f"{count} {status}" for status, count in sorted(answers.items())), flush=True)
        answers.clear()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1].rstrip("/"))
