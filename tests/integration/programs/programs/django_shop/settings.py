import os

from psycopg.conninfo import conninfo_to_dict

CONNECTIONS = int(os.environ.get("CONNECTIONS", "2"))
TIMEOUT = float(os.environ.get("TIMEOUT", "30"))
server = conninfo_to_dict(os.environ["DATABASE_URL"])

SECRET_KEY = "none is needed"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "django_shop.urls"
INSTALLED_APPS = ["django_shop"]
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": server["dbname"],
        "USER": server["user"],
        "PASSWORD": server["password"],
        "HOST": server["host"],
        "PORT": server["port"],
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"pool": {"name": "shop", "min_size": 1, "max_size": CONNECTIONS, "timeout": TIMEOUT}},
    }
}
