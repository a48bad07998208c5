-- What was done to a message, by the message: a member who has left sees it as it was then (models/sync.py).

-- migrate:up transaction:false

CREATE INDEX CONCURRENTLY IF NOT EXISTS chat_events_message_id ON chat_events (message_id, seq)
    WHERE message_id IS NOT NULL;

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
