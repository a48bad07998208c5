-- The owner and admins of a chat, so that a list of chats need not read all readers of a channel to find them.

-- migrate:up transaction:false

CREATE INDEX CONCURRENTLY IF NOT EXISTS chat_participants_governors ON chat_participants (chat_id, user_id)
    WHERE role IN ('owner', 'admin');

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
