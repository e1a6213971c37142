"""Customers who come one after another, and order at the same time, through Django's test client."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import django
from django.db import close_old_connections
from django.test import Client

django.setup()


def order(number: int) -> dict[str, int]:
    try:
        return Client().post(f"/orders/{number}").json()
    finally:
        close_old_connections()  # which the test client leaves to the program


with ThreadPoolExecutor(3) as customers:
    orders = [customers.submit(order, int(line)) for line in sys.stdin]
print(json.dumps([each.result() for each in orders]))
