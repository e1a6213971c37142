"""The same application, which leaves no connection open after its import."""

from django.db import connection

from django_shop import wsgi

application = wsgi.application
connection.close()
connection.close_pool()
