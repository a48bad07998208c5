-- Pinned messages.

-- migrate:up

SET LOCAL lock_timeout = '500ms'; -- two tables in use, one after the other

ALTER TYPE chat_event_type ADD VALUE IF NOT EXISTS 'message_pinned';
ALTER TYPE chat_event_type ADD VALUE IF NOT EXISTS 'message_unpinned';

-- `chat_id` is that of the message, which never changes. Servers of the version before erase a message without its row
-- here: such a row counts for nothing, and goes with that of the message.
CREATE TABLE pinned_messages (
    message_id uuid PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    chat_id    uuid NOT NULL,
    seq        bigint NOT NULL,  -- of its event message_pinned
    pinned_by  uuid REFERENCES users (id) ON DELETE SET NULL,
    pinned_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (chat_id, seq)
);
CREATE INDEX pinned_messages_pinned_by ON pinned_messages (pinned_by);

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
