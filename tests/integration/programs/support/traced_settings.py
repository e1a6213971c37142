"""The shop's settings with the middleware that an instrumentation of Django would add."""

from django_shop.settings import *  # noqa: F403 - as Django's settings are extended

MIDDLEWARE = ["request_spans.RequestSpans"]
