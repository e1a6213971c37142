"""Replaced attributes of classes are put back."""

from __future__ import annotations

from otel_pgpool.instrumentation.adapters.replacements import Replacements


def test_the_same_value_set_twice() -> None:
    """Two threads may set an attribute of a class at the same time; it is removed once."""

    class Owner:
        pass

    replacements = Replacements()
    replacements.set(Owner, "mark", None)
    replacements.set(Owner, "mark", None)
    replacements.restore()
    assert not hasattr(Owner, "mark")


def test_attribute_that_others_have_replaced_since() -> None:
    """What third-party code has set afterwards stays."""

    class Owner:
        mark = "own"

    replacements = Replacements()
    replacements.wrap(Owner, "mark", str.upper)
    assert Owner.mark == "OWN"
    Owner.mark = "another's"
    replacements.restore()
    assert Owner.mark == "another's"
