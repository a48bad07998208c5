-- What a chat remembers of users who are not in it, and how each participant wants to see a chat.

-- migrate:up

SET LOCAL lock_timeout = '500ms'; -- two tables in use, one after the other

-- What stands against users who are not in a chat: it decides whether and how they come back. The row goes when they do.
CREATE TABLE chat_sanctions (
    chat_id    uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    restricted boolean NOT NULL DEFAULT false,  -- was restricted, and comes back as that
    removed_at timestamptz,  -- no invite that was made before lets them in
    banned_at  timestamptz,  -- nothing lets them in
    PRIMARY KEY (chat_id, user_id)
);
CREATE INDEX chat_sanctions_user_id ON chat_sanctions (user_id);
CREATE INDEX chat_sanctions_banned_at ON chat_sanctions (chat_id, banned_at, user_id) WHERE banned_at IS NOT NULL;

-- How a participant wants to see a chat; no row for who has not said anything. Messages are compared by number, so that
-- posting a message writes nothing here.
CREATE TABLE chat_views (
    chat_id        uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    user_id        uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    hidden_number  bigint,  -- left out of the list until there is a message after this one
    deleted_number bigint,  -- a direct chat deleted for oneself: gone until there is a message after this one
    archived       boolean NOT NULL DEFAULT false,
    muted_until    timestamptz,
    marked_unread  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (chat_id, user_id)
);
CREATE INDEX chat_views_user_id ON chat_views (user_id);

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
