-- What sweeps go by: rows that they could not do, and deleted chats that still have something to erase.

-- migrate:up

-- A row that a sweep failed at is passed over until `retry_at`, so that it holds up nothing but itself. `key` is the
-- text of the row's key, `(id)` or `(chat_id,seq)`, of whatever table the sweep is about.
CREATE TABLE sweep_failures (
    sweep    text NOT NULL,
    key      text NOT NULL,
    failures integer NOT NULL DEFAULT 1 CHECK (failures > 0),
    retry_at timestamptz NOT NULL,
    PRIMARY KEY (sweep, key)
);
CREATE INDEX sweep_failures_retry_at ON sweep_failures (retry_at);

-- Deleted chats whose messages and events are still to be erased, or are to be tried again at `due_at`; those of before
-- come with the next file. Without a reference to the chat: a chat that is gone has nothing left to erase.
CREATE TABLE chat_purges (
    chat_id uuid PRIMARY KEY,
    due_at  timestamptz NOT NULL
);
CREATE INDEX chat_purges_due_at ON chat_purges (due_at, chat_id);

-- In the database, so that no way of deleting a chat can forget it, that of an older server among them.
CREATE FUNCTION queue_purge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chat_purges (chat_id, due_at) VALUES (NEW.id, NEW.deleted_at) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER chat_threads_deleted AFTER UPDATE OF deleted_at ON chat_threads
    FOR EACH ROW WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION queue_purge();

-- migrate:down
