-- What tells a database that was put back to an earlier time, and which servers may start on a newer schema.

-- migrate:up

-- Where this database is: its cluster, the timeline (a new one begins when a cluster is put back to a moment, or its
-- standby takes over), the database, and the table itself. One of the four is another one after whatever brings a
-- database back to an earlier time, but for a snapshot of the disk (models/epochs.py).
CREATE FUNCTION database_place() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT concat_ws('/', cluster.system_identifier, left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
                     (SELECT oid FROM pg_database WHERE datname = current_database()), 'sync_epoch'::regclass::oid)
    FROM pg_control_system() AS cluster
$$;

ALTER TABLE sync_epoch ADD COLUMN place text NOT NULL DEFAULT '';
UPDATE sync_epoch SET place = database_place()
WHERE system_identifier = (SELECT system_identifier FROM pg_control_system());

-- The last migration of the oldest server that can work with this schema. A migration that only adds leaves it alone;
-- one that takes something away sets it to the first version that did without.
CREATE TABLE schema_floor (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    oldest text NOT NULL CHECK (oldest ~ '^[0-9]{4}$')
);
INSERT INTO schema_floor (oldest) VALUES ('0006');

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
