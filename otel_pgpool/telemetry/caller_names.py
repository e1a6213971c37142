"""The names of callers in metrics: short, the same on every machine, and without values from a request."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.text import LONGEST_NAME, cut, function_of, may_hold_password, printable

if TYPE_CHECKING:
    from types import CodeType

VALUE = "{id}"
"""What a value from a request is replaced by."""

_METHOD = re.compile(r"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT|HTTP)\b")
_SERVER = re.compile(r"\b[a-z][a-z0-9+.-]*://[^/?\s]*", re.IGNORECASE)
_GROUP = re.compile(r"\(\?P<\w+>(?:[^()]|\([^()]*\))*\)")  # of a route that is a regular expression, as in Django
_STATIC = re.compile(  # parts of a route in spite of a digit: a version, also within the name of a gRPC service
    r"(?:[a-z_]+\.)*v\d{1,3}(?:\.\d{1,3})*(?:(?:alpha|beta)\d{0,3})?(?:\.[a-z_]+)*|oauth[12]", re.IGNORECASE
)
_DIGIT = re.compile(r"\d")
_LONGEST_WORD = 64

_VALUES = re.compile(
    r".*[=&%@;].*"  # an assignment, an encoded character, an address
    r"|[\W_]*(?:\d[\W_]*)+"  # a number, a date
    r"|(?=[a-f-]*\d)[0-9a-f-]{8,}",  # a hash, a UUID
    re.IGNORECASE,
)


ROUTE = "http.route"
PATHS = ("url.path", "http.target", "url.full", "http.url")
"""Attributes of the semantic conventions, present and former, which contain the path of a request."""


def name_without_path(span: Any) -> str:
    """Return the name of a request's span without the request's path, which may contain secrets; a route is kept.

    An instrumentation that does not know the route may put the path into the name.
    """
    name, attributes = str(span.name), span.attributes or {}
    if ROUTE in attributes:
        return name
    for key in PATHS:
        path = _SERVER.sub("", str(attributes.get(key, ""))).partition("?")[0]
        if len(path) > 1 and path in name:
            return name.replace(path, "").strip()
    return name


def name_of_span(name: str) -> str:
    """Return the name of a span without the parameters of a URL; empty if nothing is left.

    Server, query and fragment are removed. Numbers, hashes, UUIDs and what else cannot be a part of a route are
    replaced by `VALUE`; in a path also every part with a digit, except for a version such as ``v1``, the name of a gRPC
    service with a version, and ``oauth2``. A value that consists of letters only cannot be distinguished from a part of
    a route.
    """
    name, has_server = _SERVER.subn("", name[: 2 * LONGEST_NAME])
    name = _GROUP.sub(VALUE, name).partition("?")[0]
    is_request = bool(has_server or _METHOD.match(name) or name.startswith("/"))
    shown = " ".join(_word(word, is_path=is_request or word.startswith("/")) for word in name.split())
    return "" if may_hold_password(shown) else printable(shown, LONGEST_NAME)


def _word(word: str, *, is_path: bool) -> str:
    if is_path:
        word = word.partition("#")[0]
    return "/".join(VALUE if _is_value(part, is_path=is_path) else part for part in word.split("/"))


def _is_value(part: str, *, is_path: bool) -> bool:
    if len(part) > _LONGEST_WORD or _VALUES.fullmatch(part):
        return True
    return is_path and _DIGIT.search(part) is not None and not _STATIC.fullmatch(part)


def name_of_code(code: CodeType) -> str:
    """Return the file and the function of a code object as ``file:function``.

    The file is relative to the folder from which Python imports it, as in ``shop/orders.py``, so that the name is the
    same on every machine; if it is in no such folder, its name only.
    """
    return cut(f"{printable(_file(code.co_filename), LONGEST_NAME)}:{function_of(code)}", LONGEST_NAME)


def _file(path: str) -> str:
    folders = [os.path.join(each, "") for each in sys.path if os.path.isabs(each)]  # noqa: PTH117, PTH118 - with the separator
    with suppress(OSError):  # the working directory was deleted
        here = os.getcwd()  # noqa: PTH109 - as text
        folders += [os.path.join(os.path.normpath(os.path.join(here, each)), "") for each in sys.path]  # noqa: PTH118 - as above
    inside = [folder for folder in folders if len(folder) > 1 and path.startswith(folder)]
    relative = path[len(max(inside, key=len)) :] if inside else os.path.basename(path)  # noqa: PTH119 - may be no path
    return relative.replace(os.sep, "/")
