-- The roles that the stack's programs log in as, each with the rights that it needs. psql runs this once, as superuser and
-- in the database shop, when the volume is made. The passwords are read from the environment.
\set ON_ERROR_STOP on
\getenv shop_password SHOP_PASSWORD
\getenv collector_password COLLECTOR_PASSWORD

-- What every role may do by itself: connect to each database, and make temporary tables there.
revoke connect, temporary on database postgres, shop, template1 from public;

-- The shop owns a schema of its name, which its search_path begins with, and nothing else.
create role shop login password :'shop_password';
grant connect on database shop to shop;
create schema authorization shop;

-- The Collector counts connections, for which a role needs to read nothing but what every role may.
create role collector login connection limit 5 password :'collector_password';
grant connect on database postgres, shop to collector;
