#!/bin/sh
# PostgreSQL's image runs this once, on a new volume: it creates the servers' role and its database.
#
# It is an ordinary role, which owns its database and everything that migrations create in it; every role can read what
# they need of the cluster (pg_control_system and the like). So with a fault in the server, or its stolen password, an
# attacker controls this database, but gets no shell on this machine (COPY ... FROM PROGRAM).
# The superuser has no password; it can connect only inside the container: docker compose exec postgres psql -U
# postgres.
set -eu

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<'END'
\getenv password POSTGRES_PASSWORD
SET password_encryption = 'scram-sha-256';
CREATE ROLE mimu LOGIN PASSWORD :'password';
CREATE DATABASE mimu OWNER mimu;
REVOKE ALL ON DATABASE mimu FROM PUBLIC;
ALTER ROLE postgres PASSWORD NULL;
END
