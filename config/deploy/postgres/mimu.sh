#!/bin/sh
# Run once by PostgreSQL's image, when the volume is new: makes the role that the servers have, and its database.
#
# It is an ordinary role. It owns its database, and with it everything that migrations make; what they and the server read of
# the cluster (pg_control_system and the like) is open to every role. So a fault in the server, or its password in
# somebody's hands, is a fault in this database, and not a shell on this machine (COPY ... FROM PROGRAM).
# The superuser keeps no password: it is reached only from within the container, docker compose exec postgres psql -U postgres.
set -eu

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<'END'
\getenv password POSTGRES_PASSWORD
SET password_encryption = 'scram-sha-256';
CREATE ROLE mimu LOGIN PASSWORD :'password';
CREATE DATABASE mimu OWNER mimu;
REVOKE ALL ON DATABASE mimu FROM PUBLIC;
ALTER ROLE postgres PASSWORD NULL;
END
