"""The application for servers; a query at its import opens the pool."""

from django.core.wsgi import get_wsgi_application
from django.db import connection

application = get_wsgi_application()

with connection.cursor() as cursor:
    cursor.execute("select count(*) from stock")
