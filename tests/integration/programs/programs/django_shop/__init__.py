"""A shop on Django, with Django's own pool."""
