"""The recipe's settings, and what a project needs besides."""

from typing import Any

import settings

SECRET_KEY = "for tests alone"
INSTALLED_APPS = ["shop"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES: dict[str, dict[str, Any]] = settings.DATABASES
DATABASES["default"]["TIME_ZONE"] = "Europe/Berlin"
DATABASES["default"]["OPTIONS"] = {"isolation_level": 2}  # repeatable read
DATABASES["default"]["POOL"] |= {"minconn": 1, "maxconn": 3, "timeout": 20}
