"""The texts of libpq, servers and pools that may be shown, one in each line; ``{}`` is a placeholder."""

from __future__ import annotations

OF_LIBPQ = """
connection to server at "{}" ({}), port {} failed: {}
connection to server at "{}", port {} failed: {}
connection to server on socket "{}" failed: {}
could not connect to server: {}
could not translate host name "{}" to address: {}
could not parse network address "{}": {}
could not look up local user ID {}: {}
could not create socket: {}
could not get socket error status: {}
could not receive data from server: {}
could not send data to server: {}
could not send startup packet: {}
could not send negotiation packet: {}
could not send SSL negotiation packet: {}
could not send GSSAPI negotiation packet: {}
could not set socket to nonblocking mode: {}
server closed the connection unexpectedly
connection already closed
connection not open
cursor already closed
no connection to the server
timeout expired
out of memory
lost synchronization with server: got message type "{}", length {}
session is read-only
session is not read-only
server is in hot standby mode
server is not in hot standby mode
fe_sendauth: no password supplied
empty password returned by client
password retrieved from file "{}"
expected authentication request from server, but received {}
received invalid authentication request
received invalid response to SSL negotiation: {}
received invalid response to GSSAPI negotiation: {}
received duplicate protocol version negotiation message
received invalid protocol negotiation message: {}
received unencrypted data after SSL response
received unencrypted data after GSSAPI encryption response
invalid message length
unexpected message type "{}"
unexpected response from server; first received character was "{}"
authentication method {} not supported
authentication method requirement "{}" failed: {}
server requested a cleartext password
server requested a hashed password
server requested SASL authentication
server requested SCRAM-SHA-256-PLUS authentication, but SSL is not in use
server did not complete authentication
server does not support SSL, but SSL was required
server does not support GSSAPI encryption, but it was required
server does not support hashed passwords
server offered SCRAM-SHA-256-PLUS authentication over a non-SSL connection
channel binding is required, but SSL is not in use
channel binding is required, but client does not support it
channel binding is required, but server did not offer an authentication method that supports channel binding
channel binding required, but SSL not in use
channel binding required but not supported by server's authentication request
duplicate SASL authentication request
none of the server's SASL authentication mechanisms are supported
malformed SCRAM message (attribute "{}" expected)
incorrect server signature
could not verify server signature: {}
could not encrypt password: {}
GSSAPI encryption required but it is not supported over a local socket
GSSAPI encryption required but was impossible (possibly no credential cache, no server support, or using a local socket)
GSSAPI continuation error: {}
GSSAPI name import error: {}
root certificate file "{}" does not exist
could not read root certificate file "{}": {}
could not open certificate file "{}": {}
could not read certificate file "{}": {}
certificate present, but not private key file "{}"
could not load private key file "{}": {}
private key file "{}" is not a regular file
private key file "{}" has group or world access; {}
private key file "{}" must be owned by the current user or root
certificate does not match private key file "{}": {}
could not establish SSL connection: {}
could not load system root certificate paths: {}
could not get home directory to locate root certificate file
could not get server's host name from server certificate
server certificate for "{}" does not match host name "{}"
server certificate for "{}" (and {} other name) does not match host name "{}"
server certificate for "{}" (and {} other names) does not match host name "{}"
host name must be specified for a verified SSL connection
SSL connection has been closed unexpectedly
SSL error: {}
SSL SYSCALL error: {}
SSL SYSCALL error: EOF detected
SSL certificate's name contains embedded null
definition of service "{}" not found
service file "{}" not found
sslmode value "{}" invalid when SSL support is not compiled in
weak sslmode "{}" may not be used with sslrootcert=system (use "verify-full")
user-defined OAuth flow failed
no OAuth flows are available (try installing the libpq-oauth package)
"""

OF_TLS = """
certificate verify failed
certificate has expired
certificate is not yet valid
self-signed certificate
self-signed certificate in certificate chain
unable to get local issuer certificate
no certificate
no protocols available
no shared cipher
unsupported protocol
unexpected eof while reading
unexpected eof
wrong version number
version too low
dh key too small
ee key too small
bad signature
internal error
sslv3 alert bad certificate
sslv3 alert certificate expired
sslv3 alert certificate revoked
sslv3 alert certificate unknown
sslv3 alert handshake failure
sslv3 alert unsupported certificate
ssl/tls alert bad certificate
ssl/tls alert certificate expired
ssl/tls alert certificate unknown
ssl/tls alert handshake failure
ssl/tls alert unsupported certificate
tlsv1 alert access denied
tlsv1 alert decrypt error
tlsv1 alert insufficient security
tlsv1 alert internal error
tlsv1 alert no application protocol
tlsv1 alert protocol version
tlsv1 alert unknown ca
tlsv1 alert user cancelled
tlsv13 alert certificate required
"""

OF_RESOLVERS = """
Name or service not known
nodename nor servname provided, or not known
Temporary failure in name resolution
Non-recoverable failure in name resolution
No address associated with hostname
No address associated with name
Address family for hostname not supported
ai_family not supported
ai_socktype not supported
Servname not supported for ai_socktype
Bad value for ai_flags
Bad hostname
Unknown error
System error
Memory allocation failure
Try again
"""

OF_POSTGRESQL = """
FATAL:  {}
ERROR:  {}
PANIC:  {}
password authentication failed for user "{}"
Peer authentication failed for user "{}"
Ident authentication failed for user "{}"
PAM authentication failed for user "{}"
LDAP authentication failed for user "{}"
RADIUS authentication failed for user "{}"
GSSAPI authentication failed for user "{}"
SSPI authentication failed for user "{}"
BSD authentication failed for user "{}"
OAuth bearer authentication failed for user "{}"
SCRAM authentication failed for user "{}"
certificate authentication failed for user "{}"
"trust" authentication failed for user "{}"
authentication failed for user "{}": host rejected
authentication failed for user "{}": invalid authentication method
empty password returned by client
canceling authentication due to timeout
connection requires a valid client certificate
no PostgreSQL user name specified in startup packet
role "{}" does not exist
role "{}" is not permitted to log in
role with OID {} does not exist
database "{}" does not exist
database {} does not exist
database "{}" is not currently accepting connections
cannot connect to invalid database "{}"
database locale is incompatible with operating system
permission denied for database "{}"
permission denied for database {}
permission denied to set role "{}"
permission denied to set session authorization
permission denied to set session authorization "{}"
too many connections for role "{}"
too many connections for database "{}"
too many connections to database "{}"
sorry, too many clients already
remaining connection slots are reserved for superusers
remaining connection slots are reserved for roles with the SUPERUSER attribute
remaining connection slots are reserved for non-replication superuser connections
remaining connection slots are reserved for roles with privileges of the "pg_use_reserved_connections" role
must be superuser to connect in binary upgrade mode
must be superuser to connect during database shutdown
no pg_hba.conf entry for host "{}", user "{}", database "{}"
no pg_hba.conf entry for host "{}", user "{}", database "{}", no encryption
no pg_hba.conf entry for host "{}", user "{}", database "{}", SSL encryption
no pg_hba.conf entry for host "{}", user "{}", database "{}", GSS encryption
no pg_hba.conf entry for host "{}", user "{}", database "{}", SSL off
no pg_hba.conf entry for host "{}", user "{}", database "{}", SSL on
pg_hba.conf rejects connection for host "{}", user "{}", database "{}"
pg_hba.conf rejects connection for host "{}", user "{}", database "{}", no encryption
pg_hba.conf rejects connection for host "{}", user "{}", database "{}", SSL encryption
pg_hba.conf rejects connection for host "{}", user "{}", database "{}", GSS encryption
pg_hba.conf rejects connection for host "{}", user "{}", database "{}", SSL off
pg_hba.conf rejects connection for host "{}", user "{}", database "{}", SSL on
the database system is starting up
the database system is shutting down
the database system is in recovery mode
the database system is not accepting connections
the database system is not yet accepting connections
terminating connection due to administrator command
terminating connection due to conflict with recovery
terminating connection due to crash of another server process
terminating connection due to idle-in-transaction timeout
terminating connection due to idle-session timeout
terminating connection due to transaction timeout
terminating connection due to immediate shutdown command
terminating connection due to unexpected postmaster exit
terminating connection because of crash of another server process
terminating connection because protocol synchronization was lost
connection to client lost
canceling statement due to statement timeout
canceling statement due to lock timeout
canceling statement due to user request
canceling statement due to conflict with recovery
cannot execute {} in a read-only transaction
cannot execute {} during recovery
current transaction is aborted, commands ignored until end of transaction block
could not serialize access due to concurrent update
could not serialize access due to concurrent delete
could not serialize access due to read/write dependencies among transactions
deadlock detected
duplicate key value violates unique constraint "{}"
conflicting key value violates exclusion constraint "{}"
new row for relation "{}" violates check constraint "{}"
value for domain {} violates check constraint "{}"
insert or update on table "{}" violates foreign key constraint "{}"
update or delete on table "{}" violates foreign key constraint "{}" on table "{}"
update or delete on table "{}" violates RESTRICT setting of foreign key constraint "{}" on table "{}"
null value in column "{}" of relation "{}" violates not-null constraint
DISCARD ALL cannot run inside a transaction block
out of shared memory
could not fork new process for connection: {}
could not open file "{}": {}
could not write to file "{}": {}
could not extend file "{}": {}
could not resize shared memory segment "{}" to {} bytes: {}
could not access status of transaction {}
invalid value for parameter "{}": "{}"
invalid value for parameter "{}": {}
invalid command-line argument for server process: {}
invalid command-line arguments for server process
invalid startup packet layout: expected terminator as last byte
invalid length of startup packet
unrecognized configuration parameter "{}"
parameter "{}" cannot be changed now
parameter "{}" cannot be changed without restarting the server
permission denied to set parameter "{}"
unsupported frontend protocol {}: server supports {} to {}
unsupported startup parameter: {}
"""

OF_PROXIES = """
no such user
no such user: {}
no such database: {}
password authentication failed
SASL authentication failed
auth failed
bouncer config error
login rejected
SSL required
not allowed
client_login_timeout
client_idle_timeout
idle transaction timeout
query timeout
query_timeout
query_wait_timeout
server login failed: {}
server login has been failing, cached error: {}
server login has been failing, try again later (server_login_retry)
server login has been failing, cached error: {} (server_login_retry)
server conn crashed?
server_lifetime
pgbouncer cannot connect to server
pgbouncer is shutting down
database "{}" is disabled
database does not allow connections: {}
no more connections allowed
no more connections allowed (max_client_conn)
client connections exceeded (max_db_client_connections)
client connections exceeded (max_user_client_connections)
the database is paused
Max client connections reached
max clients reached
Tenant or user not found
Timed-out waiting to acquire database connection
This RDS Proxy has no credentials for the role {}
The IAM authentication failed for the role {}
This RDS proxy requires TLS connections
"""
"""Texts of PgBouncer, RDS Proxy and Supavisor."""

OF_ASYNCPG = """
pool is closing
pool is closed
pool is not initialized
pool is being initialized, but not yet ready: likely there is a race between creating a pool and using it
connection is closed
connection was closed during pool initialization
connection was closed in the middle of operation
cannot perform operation: another operation is in progress
a connection is already acquired
unexpected connection_lost() call
"""

OF_STOCK_POOLS = """
connection pool exhausted
connection pool is closed
trying to put unkeyed connection
QueuePool limit of size {} overflow {} reached, connection timed out, timeout {}
"""

OF_PSYCOPG = """
connection failed: {}
connection is bad: {}
connection timeout expired
failed to resolve host '{}': {}
[Errno {}] {}
Multiple connection attempts failed. All failures were:
- host: '{}', port: '{}', hostaddr: '{}': {}
- host: '{}', port: '{}', hostaddr: None: {}
- host: None, port: None, hostaddr: None: {}
the connection is closed
the connection is lost
consuming input failed: {}
sending query failed: {}
sending query and params failed: {}
flushing failed: {}
no result returned: {}
couldn't get a connection after {} sec
pool initialization incomplete after {} sec
pool has already been opened/closed and cannot be reused
the pool '{}' has already {} requests waiting
the pool '{}' is already closed
the pool '{}' is closed
the pool '{}' is not open yet
connection left in status {} by configure function {}: discarded
connection left in status {} by reset function {}: discarded
"""
"""Texts of psycopg 3 and of its pools."""

OF_OURS = """
configure left a transaction in error, so its work cannot be committed
reset left a transaction in error, so its work cannot be committed
a two-phase transaction was left prepared: it is kept, and its connection is closed
"""
