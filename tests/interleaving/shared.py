"""Objects whose every access by a scheduled thread is noted: attributes, lists, sets, dictionaries.

The classes are subclasses of the real ones without further state, so the pool's own bytecode runs unchanged. Each
method of a container stays one step, as the function written in C that it stands for.
"""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache
from typing import Any

from otel_pgpool.pool.waiters import Queue, SuspendedQueue
from tests.interleaving.scheduler import HERE, LABELS, touch, touched

_names: dict[int, Any] = {}
_alive: list[Any] = []  # keeps each named object, so that its `id` stays its own


def forget_all() -> None:
    """Begin a new order: all objects get new names."""
    LABELS.restart()
    _names.clear()
    _alive.clear()


def name_of(thing: Any) -> Any:
    """Return the name of an object, which it gets when it is made: the same one in every order."""
    name = _names.get(id(thing))
    if name is None:
        name = _names[id(thing)] = LABELS.next()
        _alive.append(thing)
    return name


class Mutable(set[str]):
    """The names of attributes that an operation has set. Reads of others cannot conflict, and are not noted.

    An exploration during which a name is added is done again, because its first orders did not switch there.
    """

    has_grown = False

    def learn(self, name: str) -> None:
        """Add a name."""
        if name not in self:
            self.add(name)
            self.has_grown = True


MUTABLE = Mutable()


@cache
def is_data(kind: type, name: str) -> bool:
    """Return whether a name is a value of the objects, not a method, a property or a dunder."""
    if name.startswith("__"):
        return False
    found = inspect.getattr_static(kind, name, None)
    return not (callable(found) or isinstance(found, (property, staticmethod, classmethod)))


@cache
def watched(kind: type) -> type:
    """Return the subclass of a class whose accesses are noted."""

    def read(self: Any, name: str) -> Any:
        if name in MUTABLE and HERE.runner is not None:
            touch((name_of(self), name), writes=False)
        return kind.__getattribute__(self, name)

    def write(self: Any, name: str, value: Any) -> None:
        if HERE.runner is not None:
            if is_data(kind, name):
                MUTABLE.learn(name)
                touch((name_of(self), name), writes=True)
            value = contained(value)
        else:
            name_of(self)
        kind.__setattr__(self, name, value)

    def delete(self: Any, name: str) -> None:
        if HERE.runner is not None:
            MUTABLE.learn(name)
            touch((name_of(self), name), writes=True)
        kind.__delattr__(self, name)

    body = {"__slots__": (), "__getattribute__": read, "__setattr__": write, "__delattr__": delete}
    if kind.__hash__ is object.__hash__:  # so that sets of such objects have the same order each time
        body["__hash__"] = lambda self: hash(name_of(self))
    body["__module__"], body["__qualname__"] = kind.__module__, kind.__qualname__
    return type(kind.__name__, (kind,), body)


def watch(thing: Any) -> Any:
    """Note every access to the attributes of an object, and to the containers in them."""
    kind = type(thing)
    names = {
        name for each in kind.__mro__ for name in getattr(each, "__slots__", ()) if not name.startswith("__")
    } | set(getattr(thing, "__dict__", ()))
    for name in sorted(names):
        value = getattr(thing, name, None)
        wrapped = contained(value)
        if wrapped is not value:
            setattr(thing, name, wrapped)
    thing.__class__ = watched(kind)
    name_of(thing)
    return thing


def touch_all(arguments: tuple[Any, ...]) -> None:
    """Note that a method reads the containers among its arguments."""
    for each in arguments:
        if hasattr(type(each), "is_watched"):
            touch(name_of(each), writes=False)


def _reader(method: Any) -> Any:
    def reads(self: Any, *args: Any, **kwargs: Any) -> Any:
        if HERE.runner is not None:
            touch(name_of(self), writes=False)
            touch_all(args)
        return method(self, *args, **kwargs)

    return reads


def _writer(method: Any) -> Any:
    is_operator = method.__name__.startswith("__")

    def writes(self: Any, *args: Any, **kwargs: Any) -> Any:
        if HERE.runner is not None:
            touch(name_of(self), writes=True)
            touch_all(args)
        result = method(self, *args, **kwargs)
        if not is_operator:  # CPython handles no signal after one
            touched()
        return result

    return writes


class _Iterator:
    """An iterator each of whose steps reads the container."""

    def __init__(self, container: Any, iterator: Any) -> None:
        self._container, self._iterator = container, iterator

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> Any:
        if HERE.runner is not None:
            touch(name_of(self._container), writes=False)
        return next(self._iterator)


READS = {
    *("__contains__", "__len__", "__eq__", "__getitem__", "copy", "index", "count", "get", "issubset"),
    *("__sub__", "__and__", "__or__", "__rsub__", "__rand__"),
}
WRITES = {
    *("__setitem__", "__delitem__", "__iadd__", "__isub__", "__iand__", "__ior__", "__missing__"),
    *("append", "appendleft", "add", "insert", "extend", "update", "setdefault", "move_to_end", "sort"),
    *("pop", "popleft", "popitem", "remove", "discard", "clear", "difference_update", "intersection_update"),
}
ITERATES = {"__iter__", "__reversed__"}
VIEWS = {"values", "items", "keys"}


class _View:
    """A view of a dictionary, which reads the dictionary only when it is iterated."""

    def __init__(self, container: Any, view: Any) -> None:
        self._container, self._view = container, view

    def __iter__(self) -> Any:
        if HERE.runner is not None:
            touch(name_of(self._container), writes=False)
        return _Iterator(self._container, iter(self._view))

    def __len__(self) -> int:
        return len(self._container)

    def __contains__(self, item: object) -> bool:
        if HERE.runner is not None:
            touch(name_of(self._container), writes=False)
        return item in self._view


def _iterating(method: Any) -> Any:
    def iterates(self: Any) -> Any:
        if HERE.runner is None:
            return method(self)
        touch(name_of(self), writes=False)
        return _Iterator(self, method(self))

    return iterates


def _viewing(method: Any) -> Any:
    def views(self: Any) -> Any:
        return method(self) if HERE.runner is None else _View(self, method(self))

    return views


@cache
def watched_container(kind: type) -> type:
    """Return the subclass of a container whose accesses are noted."""
    body: dict[str, Any] = {}
    for names, wrap in ((READS, _reader), (WRITES, _writer), (ITERATES, _iterating), (VIEWS, _viewing)):
        for name in names:
            method = getattr(kind, name, None)
            if method is None or getattr(method, "__module__", "") == kind.__module__ != "collections":
                continue
            body[name] = wrap(method)
    body["is_watched"] = True
    if issubclass(kind, Queue):
        body.update(suspend=_changing(SuspendedQueue), resume=_changing(Queue))
    return type(kind.__name__, (kind,), body)


def _changing(kind: type) -> Any:
    """Return the method that changes the class of a queue, and whose accesses are noted afterwards as before."""

    def changes(self: Any) -> None:
        if HERE.runner is not None:
            touch(name_of(self), writes=True)
        self.__class__ = watched_container(kind)

    return changes


KINDS = {list, set, dict, deque, Counter, OrderedDict, defaultdict, Queue, SuspendedQueue}


def contained(value: Any) -> Any:
    """Return a container with the same items whose accesses are noted; anything else unchanged."""
    kind = type(value)
    if kind in KINDS:
        default = (value.default_factory,) if kind is defaultdict else ()
        copy = watched_container(kind)(*default, value)
        name_of(copy)
        return copy
    return value
