-- Push: where a user's devices are reached while they have no socket open, and what they want to be woken for.

-- migrate:up

CREATE TYPE push_provider AS ENUM ('apns', 'apns_voip', 'fcm', 'webpush');

-- One row for each token of a user. Another account may have registered the same one: a device that changes hands has
-- two rows until the former owner's session ends, and nobody can cut anybody off by knowing a token.
CREATE TABLE push_tokens (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id       uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    session_id    uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    provider      push_provider NOT NULL,
    token         text NOT NULL CHECK (octet_length(token) <= 4096),  -- of a Web Push subscription its endpoint
    token_hash    bytea NOT NULL CHECK (octet_length(token_hash) = 32),  -- its SHA-256: a token is too long for an index
    p256dh        bytea CHECK (octet_length(p256dh) = 65),
    auth          bytea CHECK (octet_length(auth) = 16),
    sandbox       boolean NOT NULL DEFAULT false,  -- APNs: an app that is being developed
    quiet         boolean NOT NULL DEFAULT false,  -- APNs: wakes the app in the background, and shows nothing
    registered_at timestamptz NOT NULL DEFAULT now(),  -- for the last time
    woken_at      timestamptz,  -- APNs: when the app was last woken in the background
    UNIQUE (user_id, provider, token_hash),
    CHECK ((provider = 'webpush') = (p256dh IS NOT NULL AND auth IS NOT NULL))
);
CREATE INDEX push_tokens_session_id ON push_tokens (session_id);

-- A session that ends keeps its row for a while; its tokens go at once. In the database, so that no way of ending a
-- session can forget it.
CREATE FUNCTION drop_push_tokens() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM push_tokens WHERE session_id = NEW.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER sessions_drop_push_tokens AFTER UPDATE OF revoked_at ON sessions
    FOR EACH ROW WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION drop_push_tokens();

-- What a user wants to be woken for. Who has no row wants it all.
CREATE TABLE push_settings (
    user_id     uuid PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    kinds       jsonb NOT NULL CHECK (jsonb_typeof(kinds) = 'array'),
    quiet_hours jsonb CHECK (jsonb_typeof(quiet_hours) = 'object'),
    muted_chats jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(muted_chats) = 'object')  -- until when, or null, by chat
);

-- migrate:down

DROP TABLE push_settings, push_tokens;
DROP TRIGGER sessions_drop_push_tokens ON sessions;
DROP FUNCTION drop_push_tokens;
DROP TYPE push_provider;
