"""psycopg2: connecting, resetting and closing sessions, and the texts of its errors."""
