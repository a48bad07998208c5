-- The schema of the product description, with the keys, checks and indexes that the wire contract needs.
-- Sizes and forms are checked here as well as at the door: a row that breaks them would be a bug, and must not live.

-- migrate:up

CREATE TYPE subscription_tier AS ENUM ('premium', 'ultra');
CREATE TYPE subscription_status AS ENUM ('active', 'expired', 'cancelled');
CREATE TYPE prekey_kind AS ENUM ('signed', 'one_time', 'kyber', 'last_resort');
CREATE TYPE trust_level AS ENUM ('unverified', 'verified', 'trusted');
CREATE TYPE chat_type AS ENUM ('direct', 'group', 'channel', 'secret', 'cloud');
CREATE TYPE participant_role AS ENUM ('owner', 'admin', 'member', 'restricted');
CREATE TYPE call_type AS ENUM ('audio', 'video');
CREATE TYPE call_status AS ENUM ('ringing', 'accepted', 'ended', 'missed', 'rejected', 'failed');

-- Accounts ---------------------------------------------------------------------------------------------------------

-- public_id is compared without regard to case and always byte-wise: the C collation lets one index serve
-- equality and prefix search, whatever locale the cluster was made with.
CREATE TABLE users (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    public_id          text COLLATE "C" NOT NULL CHECK (public_id ~ '^[A-Za-z0-9_]{3,32}$'),
    password_hash      text NOT NULL,
    identity_key       bytea NOT NULL UNIQUE CHECK (octet_length(identity_key) = 32),
    signing_public_key bytea NOT NULL CHECK (octet_length(signing_public_key) = 32),
    registration_id    integer NOT NULL CHECK (registration_id >= 0),
    fingerprint        text COLLATE "C" NOT NULL UNIQUE CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
    display_name       text,
    bio                text,
    avatar_url         text,
    language           text,
    settings           jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object'),
    is_online          boolean NOT NULL DEFAULT false,
    last_seen          timestamptz,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    -- Since when an operator keeps the account from signing in. It has no session then: whoever opens one looks here.
    suspended_at       timestamptz
);
CREATE UNIQUE INDEX users_public_id_key ON users (lower(public_id));

-- The search for a part of an id. `alice` is here as `lice/a`, `ice/al` and `ce/ali`: from each letter but the first
-- (users_public_id_key has that one) to the end, then what came before. Whatever is in an id is thus where a row
-- begins, and those rows lie side by side in the index: a popular part costs no more than a rare one, where n-grams
-- under a GIN index would read all that match before the first is shown. The row alone tells the id, so the index is
-- all that is read. No row begins with the last letter: nobody searches for fewer than two.
CREATE TABLE user_rotations (
    rotation text COLLATE "C" PRIMARY KEY
);

-- The slash is in no id, and sorts before all that is: `ice/al` stands before `iced/al`.
CREATE FUNCTION rotations(public_id text) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ARRAY(SELECT substr(lower(public_id), n) || '/' || left(lower(public_id), n - 1)
                 FROM generate_series(2, length(public_id) - 1) AS n)
$$;

-- In the database, so that no way of writing an account can forget it. What a user changes is rarely the id: the
-- trigger does not run for other columns, such as is_online.
CREATE FUNCTION keep_user_rotations() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM user_rotations WHERE rotation = ANY (rotations(OLD.public_id));
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO user_rotations SELECT unnest(rotations(NEW.public_id));
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER users_keep_rotations AFTER INSERT OR DELETE OR UPDATE OF public_id ON users
    FOR EACH ROW EXECUTE FUNCTION keep_user_rotations();

-- One row a signed-in device. The row is the arbiter of refresh-token rotation; only SHA-256 of a token is kept.
CREATE TABLE sessions (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id        uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_hash     bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    previous_hash  bytea CHECK (octet_length(previous_hash) = 32),
    rotated_at     timestamptz,
    platform       text,
    client_version text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    last_used_at   timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL,
    revoked_at     timestamptz
);
CREATE INDEX sessions_user_id ON sessions (user_id);
-- The moment from which a session is of no use, for the cleanup (models/cleanup.py says why it is this one). UTC is
-- named because only then is the sum the same in every connection, as an index demands.
CREATE INDEX sessions_over
    ON sessions (least(revoked_at, (last_used_at AT TIME ZONE 'UTC' + interval '30 days') AT TIME ZONE 'UTC'));

-- Sessions that ended before their access tokens did. No foreign key: it outlives the session and the account, so
-- that an instance which missed the news on Redis still refuses the tokens of a deleted one.
CREATE TABLE ended_sessions (
    session_id uuid PRIMARY KEY,
    user_id    uuid NOT NULL,
    ended_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ended_sessions_ended_at ON ended_sessions (ended_at);

-- Tokens rotated away: one of them presented again betrays a thief, and ends the session.
CREATE TABLE spent_refresh_tokens (
    token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    session_id uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE
);
CREATE INDEX spent_refresh_tokens_session_id ON spent_refresh_tokens (session_id);

-- Challenges of reset-password that were answered; kept until they would have expired anyway.
CREATE TABLE spent_challenges (
    nonce      bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX spent_challenges_expires_at ON spent_challenges (expires_at);

-- Signal keys ------------------------------------------------------------------------------------------------------

CREATE TABLE signed_prekeys (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id       uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key_id        integer NOT NULL CHECK (key_id >= 0),
    public_key    bytea NOT NULL CHECK (octet_length(public_key) = 32),
    signature     bytea NOT NULL CHECK (octet_length(signature) = 64),
    created_at    timestamptz NOT NULL DEFAULT now(),
    superseded_at timestamptz,
    UNIQUE (user_id, key_id)
);
CREATE UNIQUE INDEX signed_prekeys_current ON signed_prekeys (user_id) WHERE superseded_at IS NULL;
CREATE INDEX signed_prekeys_superseded ON signed_prekeys (superseded_at) WHERE superseded_at IS NOT NULL;

CREATE TABLE one_time_prekeys (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key_id     integer NOT NULL CHECK (key_id >= 0),
    public_key bytea NOT NULL CHECK (octet_length(public_key) = 32),
    used       boolean NOT NULL DEFAULT false,
    used_at    timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, key_id)
);
CREATE INDEX one_time_prekeys_unused ON one_time_prekeys (user_id, key_id) WHERE NOT used;
CREATE INDEX one_time_prekeys_used ON one_time_prekeys (used_at) WHERE used;

-- ML-KEM-1024 keys of PQXDH, as clients send them (with their type byte). A last-resort key is never used up.
CREATE TABLE kyber_prekeys (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id       uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key_id        integer NOT NULL CHECK (key_id >= 0),
    public_key    bytea NOT NULL CHECK (octet_length(public_key) IN (1568, 1569)),
    signature     bytea NOT NULL CHECK (octet_length(signature) = 64),
    last_resort   boolean NOT NULL DEFAULT false,
    used          boolean NOT NULL DEFAULT false,
    used_at       timestamptz,
    superseded_at timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, last_resort, key_id),
    CHECK (NOT (last_resort AND used))
);
CREATE INDEX kyber_prekeys_unused ON kyber_prekeys (user_id, key_id) WHERE NOT used AND NOT last_resort;
CREATE UNIQUE INDEX kyber_prekeys_last_resort ON kyber_prekeys (user_id) WHERE last_resort AND superseded_at IS NULL;
CREATE INDEX kyber_prekeys_used ON kyber_prekeys (used_at) WHERE used;
CREATE INDEX kyber_prekeys_superseded ON kyber_prekeys (superseded_at) WHERE superseded_at IS NOT NULL;

-- The ids of prekeys whose rows were cleaned up. One row for each user and kind: phones count their keys, so that the
-- set is a few ranges (int8: the end of a range lies one beyond the last id, which may be 2^31 - 1).
CREATE TABLE spent_prekeys (
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    kind    prekey_kind NOT NULL,
    key_ids int8multirange NOT NULL,
    PRIMARY KEY (user_id, kind)
);

-- A key id that was sent before is refused, whether its row is still there (UNIQUE above) or not (here): to a client it
-- is the same error. After the insertion, not before: an insertion that met the old row has by then waited for the
-- cleanup that removes it, and this query sees what that cleanup noted.
CREATE FUNCTION refuse_spent_prekey() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM spent_prekeys
               WHERE user_id = NEW.user_id AND kind = TG_ARGV[0]::prekey_kind AND key_ids @> NEW.key_id::bigint) THEN
        RAISE unique_violation USING MESSAGE = 'a prekey with this id was sent before';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER signed_prekeys_spent AFTER INSERT ON signed_prekeys
    FOR EACH ROW EXECUTE FUNCTION refuse_spent_prekey('signed');
CREATE TRIGGER one_time_prekeys_spent AFTER INSERT ON one_time_prekeys
    FOR EACH ROW EXECUTE FUNCTION refuse_spent_prekey('one_time');
CREATE TRIGGER kyber_prekeys_spent AFTER INSERT ON kyber_prekeys
    FOR EACH ROW WHEN (NOT NEW.last_resort) EXECUTE FUNCTION refuse_spent_prekey('kyber');
CREATE TRIGGER kyber_prekeys_spent_last_resort AFTER INSERT ON kyber_prekeys
    FOR EACH ROW WHEN (NEW.last_resort) EXECUTE FUNCTION refuse_spent_prekey('last_resort');

-- Contacts ---------------------------------------------------------------------------------------------------------

CREATE TABLE user_verifications (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    verifier_id          uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    verified_user_id     uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    method               text NOT NULL CHECK (method IN ('qr_code', 'voice', 'manual')),
    verified_fingerprint text NOT NULL,
    trust_level          trust_level NOT NULL DEFAULT 'unverified',
    notes                text,
    verified_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (verifier_id, verified_user_id)
);
CREATE INDEX user_verifications_verified_user_id ON user_verifications (verified_user_id);

CREATE TABLE user_blocks (
    blocker_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    blocked_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (blocker_id, blocked_id),
    CHECK (blocker_id <> blocked_id)
);
CREATE INDEX user_blocks_blocked_id ON user_blocks (blocked_id);

-- Presence: which server process holds sockets of whom. A process that dies stops beating, and is swept away with
-- its rows, so that users.is_online is right again within a minute.
CREATE TABLE instances (
    id      uuid PRIMARY KEY,
    beat_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE connections (
    user_id     uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    instance_id uuid NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    PRIMARY KEY (user_id, instance_id)
);
CREATE INDEX connections_instance_id ON connections (instance_id);

-- Subscriptions: bound to a fingerprint, never to a user row -------------------------------------------------------

CREATE TABLE subscriptions (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    prid_hash          text NOT NULL UNIQUE CHECK (prid_hash ~ '^[0-9a-f]{64}$'),
    user_fingerprint   text NOT NULL CHECK (user_fingerprint ~ '^[0-9a-f]{64}$'),
    tier               subscription_tier NOT NULL,
    status             subscription_status NOT NULL DEFAULT 'active',
    activated_at       timestamptz NOT NULL DEFAULT now(),
    expires_at         timestamptz,
    payment_proof      text,
    payment_method     text CHECK (payment_method IN ('stripe', 'crypto', 'voucher')),
    signature          bytea NOT NULL CHECK (octet_length(signature) = 64),
    signature_verified boolean NOT NULL DEFAULT false,
    metadata           jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object')
);
CREATE INDEX subscriptions_user_fingerprint ON subscriptions (user_fingerprint);
CREATE INDEX subscriptions_expires_at ON subscriptions (expires_at) WHERE status = 'active';

-- Chats ------------------------------------------------------------------------------------------------------------

CREATE TABLE chat_threads (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    type       chat_type NOT NULL,
    title      text,
    avatar_url text,
    created_by uuid REFERENCES users (id) ON DELETE SET NULL,
    settings   jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX chat_threads_created_by ON chat_threads (created_by);

CREATE TABLE chat_participants (
    chat_id   uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    user_id   uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role      participant_role NOT NULL DEFAULT 'member',
    joined_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chat_id, user_id)
);
CREATE INDEX chat_participants_user_id ON chat_participants (user_id);
CREATE UNIQUE INDEX chat_participants_owner ON chat_participants (chat_id) WHERE role = 'owner';

CREATE TABLE messages (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    chat_id           uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    sender_id         uuid REFERENCES users (id) ON DELETE SET NULL,
    encrypted_payload bytea NOT NULL CHECK (octet_length(encrypted_payload) <= 65536),
    message_type      text NOT NULL,
    metadata          jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    reply_to          uuid REFERENCES messages (id) ON DELETE SET NULL,
    forwarded_from    uuid REFERENCES messages (id) ON DELETE SET NULL,
    delivered         boolean NOT NULL DEFAULT false,
    edited_at         timestamptz,
    deleted_at        timestamptz,
    expires_at        timestamptz,
    created_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX messages_chat_id ON messages (chat_id, created_at);
CREATE INDEX messages_sender_id ON messages (sender_id);
CREATE INDEX messages_reply_to ON messages (reply_to) WHERE reply_to IS NOT NULL;
CREATE INDEX messages_forwarded_from ON messages (forwarded_from) WHERE forwarded_from IS NOT NULL;
CREATE INDEX messages_expires_at ON messages (expires_at) WHERE expires_at IS NOT NULL AND deleted_at IS NULL;

CREATE TABLE message_reads (
    message_id uuid NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    read_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (message_id, user_id)
);
CREATE INDEX message_reads_user_id ON message_reads (user_id);

CREATE TABLE message_reactions (
    message_id uuid NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    emoji      text NOT NULL CHECK (octet_length(emoji) BETWEEN 1 AND 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (message_id, user_id, emoji)
);
CREATE INDEX message_reactions_user_id ON message_reactions (user_id);

-- Calls ------------------------------------------------------------------------------------------------------------

CREATE TABLE call_sessions (
    id             uuid PRIMARY KEY,
    caller_id      uuid REFERENCES users (id) ON DELETE SET NULL,
    callee_id      uuid REFERENCES users (id) ON DELETE SET NULL,
    call_type      call_type NOT NULL,
    status         call_status NOT NULL DEFAULT 'ringing',
    started_at     timestamptz NOT NULL DEFAULT now(),
    accepted_at    timestamptz,
    ended_at       timestamptz,
    end_reason     text,
    last_heartbeat timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- The callee had blocked the caller: it rings into the void, and the callee never learns of it.
    silent         boolean NOT NULL DEFAULT false,
    CHECK (caller_id <> callee_id),
    CHECK ((status IN ('ringing', 'accepted')) = (ended_at IS NULL))
);
-- A pair has one live call, whoever calls: this index is what decides glare. Silent calls are not in it: glare with
-- one would tell the callee of it.
CREATE UNIQUE INDEX call_sessions_live_pair
    ON call_sessions (least(caller_id, callee_id), greatest(caller_id, callee_id))
    WHERE status IN ('ringing', 'accepted') AND NOT silent
        -- least(NULL, x) is x: calls of erased accounts would collide
        AND caller_id IS NOT NULL AND callee_id IS NOT NULL;
CREATE INDEX call_sessions_caller_id ON call_sessions (caller_id, created_at DESC, id DESC);
CREATE INDEX call_sessions_callee_id ON call_sessions (callee_id, created_at DESC, id DESC);
CREATE INDEX call_sessions_silent ON call_sessions (caller_id, callee_id) WHERE silent AND status = 'ringing';
CREATE INDEX call_sessions_ringing ON call_sessions (started_at) WHERE status = 'ringing';
CREATE INDEX call_sessions_accepted ON call_sessions (last_heartbeat) WHERE status = 'accepted';
CREATE INDEX call_sessions_deserted ON call_sessions (id)
    WHERE status IN ('ringing', 'accepted') AND (caller_id IS NULL OR callee_id IS NULL);
CREATE INDEX call_sessions_ended ON call_sessions (ended_at) WHERE ended_at IS NOT NULL;

-- Operators --------------------------------------------------------------------------------------------------------

-- What operators did to whom. No foreign key: that an account was deleted must be known after it.
CREATE TABLE audit_log (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    actor     text NOT NULL CHECK (actor <> ''),
    action    text NOT NULL CHECK (action <> ''),
    user_id   uuid NOT NULL,
    public_id text NOT NULL
);

-- migrate:down

DROP TABLE audit_log, call_sessions, message_reactions, message_reads, messages, chat_participants, chat_threads,
    subscriptions, connections, instances, user_blocks, user_verifications, spent_prekeys, kyber_prekeys,
    one_time_prekeys, signed_prekeys, spent_challenges, spent_refresh_tokens, ended_sessions, sessions, user_rotations,
    users;
DROP FUNCTION refuse_spent_prekey, keep_user_rotations, rotations;
DROP TYPE call_status, call_type, participant_role, chat_type, trust_level, prekey_kind, subscription_status,
    subscription_tier;
