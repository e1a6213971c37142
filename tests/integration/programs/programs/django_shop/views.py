import os

from asgiref.sync import sync_to_async
from django.db import connection
from django.db.models import F
from django.http import HttpRequest, JsonResponse

from django_shop.models import Item


def served_by() -> dict[str, int]:
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        (backend,) = cursor.fetchone()
    return {"worker": os.getpid(), "backend": backend}


def order(request: HttpRequest, number: int) -> JsonResponse:
    Item.objects.filter(pk=number).update(pieces=F("pieces") - 1)
    return JsonResponse(served_by())


async def order_later(request: HttpRequest, number: int) -> JsonResponse:
    await Item.objects.filter(pk=number).aupdate(pieces=F("pieces") - 1)
    return JsonResponse(await sync_to_async(served_by)())
