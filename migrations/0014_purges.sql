-- The chats that were deleted before a trigger queued them.

-- migrate:up

INSERT INTO chat_purges SELECT id, deleted_at FROM chat_threads WHERE deleted_at IS NOT NULL ON CONFLICT DO NOTHING;

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
