-- Chats, messages and their events: an order for each chat, who sees which part of it, and what is kept for `/sync`.

-- migrate:up

CREATE TYPE chat_event_type AS ENUM (
    'message_edited', 'message_deleted', 'reaction_added', 'reaction_removed', 'receipt',
    'participant_added', 'participant_removed', 'participant_role', 'chat_created', 'chat_updated', 'chat_deleted'
);

-- Where in time this database is. An event's position is `base` + the id of its transaction; a position below the
-- oldest transaction that still runs is complete, which is what a cursor of /sync rests on. Transaction ids begin anew
-- in a restored database: then `base` grows, and the new epoch makes older cursors known as such (models/sync.py).
CREATE TABLE sync_epoch (
    single            boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch             uuid NOT NULL DEFAULT gen_random_uuid(),
    system_identifier bigint NOT NULL DEFAULT 0,
    base              bigint NOT NULL DEFAULT 0
);
INSERT INTO sync_epoch DEFAULT VALUES;

-- The row of a chat is its counter: who changes anything durable in the chat has it locked, so that numbers follow the
-- order of commits, without gaps.
ALTER TABLE chat_threads
    ADD COLUMN last_seq          bigint NOT NULL DEFAULT 0,  -- of the newest event
    ADD COLUMN last_number       bigint NOT NULL DEFAULT 0,  -- of the newest message; messages are counted by themselves
    ADD COLUMN last_position     bigint NOT NULL DEFAULT 0,  -- never smaller than that of an older event of the chat
    -- Grows with every change of who may do what here: participants, roles, blocks. Instances remember a chat's
    -- participants; a statement that names the access it relied on does nothing when that is not the present one.
    ADD COLUMN access            bigint NOT NULL DEFAULT 1,
    ADD COLUMN participant_count integer NOT NULL DEFAULT 0 CHECK (participant_count >= 0),
    ADD COLUMN pair              bytea CHECK (octet_length(pair) = 32),  -- SHA-256 of the two of a direct chat
    ADD COLUMN deleted_at        timestamptz,
    -- Every message writes this row: with room in its page the new version needs no index entries.
    SET (fillfactor = 60);
CREATE UNIQUE INDEX chat_threads_pair ON chat_threads (pair) WHERE deleted_at IS NULL;
CREATE INDEX chat_threads_deleted_at ON chat_threads (deleted_at) WHERE deleted_at IS NOT NULL;

ALTER TABLE chat_participants
    ADD COLUMN joined_seq    bigint NOT NULL DEFAULT 1,  -- what came before is not theirs to see, but in channels and clouds
    ADD COLUMN delivered_seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN read_seq      bigint NOT NULL DEFAULT 0,
    ADD COLUMN read_number   bigint NOT NULL DEFAULT 0,  -- of the newest message at or before read_seq
    ADD COLUMN own_after     bigint NOT NULL DEFAULT 0,  -- one's own messages after read_number that are still there
    SET (fillfactor = 70);

-- Who was removed or has left still hears of it from /sync, and of what came before.
CREATE TABLE chat_departures (
    chat_id    uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    joined_seq bigint NOT NULL,
    left_seq   bigint NOT NULL,
    position   bigint NOT NULL,
    left_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chat_id, user_id, left_seq)
);
CREATE INDEX chat_departures_user_id ON chat_departures (user_id, position);
CREATE INDEX chat_departures_left_at ON chat_departures (left_at);

CREATE TABLE chat_invites (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    chat_id    uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    created_by uuid REFERENCES users (id) ON DELETE SET NULL,
    token_hash bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    max_uses   integer CHECK (max_uses > 0),
    uses       integer NOT NULL DEFAULT 0 CHECK (uses <= max_uses),
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX chat_invites_chat_id ON chat_invites (chat_id, created_at);
CREATE INDEX chat_invites_created_by ON chat_invites (created_by);
CREATE INDEX chat_invites_expires_at ON chat_invites (expires_at) WHERE expires_at IS NOT NULL;

-- A message is its own message_new event; when it is deleted its row gives up the payload, and its seq is negated: out
-- of the way of who reads by seq, and still known to a sender who asks again whether it was taken. The event at its
-- place is then a row of chat_events.
ALTER TABLE messages
    ADD COLUMN seq          bigint NOT NULL CHECK (seq <> 0),
    ADD COLUMN number       bigint NOT NULL CHECK (number > 0),
    ADD COLUMN position     bigint NOT NULL,
    ADD COLUMN client_id    uuid NOT NULL,
    ADD COLUMN payload_hash bigint NOT NULL,  -- tells a repetition from another payload, also after an edit
    ADD COLUMN sealed       boolean NOT NULL DEFAULT false,
    ADD CHECK ((seq < 0) = (deleted_at IS NOT NULL));
DROP INDEX messages_chat_id;
DROP INDEX messages_sender_id;
CREATE UNIQUE INDEX messages_chat_id ON messages (chat_id, seq);
CREATE UNIQUE INDEX messages_client_id ON messages (sender_id, client_id);
CREATE UNIQUE INDEX messages_sealed ON messages (chat_id, client_id) WHERE sealed;
CREATE INDEX messages_deleted_at ON messages (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE chat_events (
    chat_id    uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    seq        bigint NOT NULL CHECK (seq > 0),
    position   bigint NOT NULL,
    type       chat_event_type NOT NULL,
    message_id uuid,
    user_id    uuid,  -- no foreign key: that somebody left must be known after their account is erased
    data       jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chat_id, seq)
);
CREATE INDEX chat_events_created_at ON chat_events (created_at);

-- Which of a chat's messages are gone, by number, in blocks of 4,096: so that unread ones are counted without reading
-- messages. Messages that disappear one after the other are one range.
CREATE TABLE chat_gone (
    chat_id uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    block   bigint NOT NULL,
    numbers int8multirange NOT NULL,
    count   integer NOT NULL,
    PRIMARY KEY (chat_id, block)
);

-- How many of a chat's messages after a number are gone.
CREATE FUNCTION gone_after(chat uuid, number bigint) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(sum(CASE WHEN block > number / 4096 THEN count ELSE (
        SELECT coalesce(sum(upper(part) - lower(part)), 0)
        FROM unnest(numbers * int8multirange(int8range(number + 1, NULL))) AS part
    ) END), 0)::bigint
    FROM chat_gone WHERE chat_id = chat AND block >= number / 4096
$$;

-- The position of the event at a place in a chat; NULL for one that is kept no more.
CREATE FUNCTION position_at(chat uuid, place bigint) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT position FROM messages WHERE chat_id = chat AND seq = place
    UNION ALL
    SELECT position FROM chat_events WHERE chat_id = chat AND seq = place
    LIMIT 1
$$;

-- The first seq, up to `newest`, at a position not below `since`. Positions in a chat never fall, so it gallops back
-- from the newest event and halves what it leaped over: some probes of an index, however long the history.
CREATE FUNCTION first_since(chat uuid, newest bigint, since bigint) RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL SAFE
AS $$
DECLARE
    below bigint := newest;   -- is below `since` when the first loop ends
    found bigint := newest + 1;  -- is not
    step  bigint := 1;
    half  bigint;
BEGIN
    WHILE below > 0 AND coalesce(position_at(chat, below), -1) >= since LOOP
        found := below;
        below := below - step;
        step := step * 2;
    END LOOP;
    below := greatest(below, 0);
    WHILE found - below > 1 LOOP
        half := (found + below) / 2;
        IF coalesce(position_at(chat, half), -1) >= since THEN
            found := half;
        ELSE
            below := half;
        END IF;
    END LOOP;
    RETURN found;
END
$$;

ALTER TABLE users
    ADD COLUMN sealed_access_key bytea CHECK (octet_length(sealed_access_key) = 32),  -- its SHA-256
    ADD COLUMN sealed_chat_id    uuid REFERENCES chat_threads (id) ON DELETE SET NULL;
CREATE UNIQUE INDEX users_sealed_chat_id ON users (sealed_chat_id) WHERE sealed_chat_id IS NOT NULL;

-- migrate:down

ALTER TABLE users DROP COLUMN sealed_access_key, DROP COLUMN sealed_chat_id;
DROP FUNCTION first_since, position_at, gone_after;
DROP TABLE chat_gone, chat_events, chat_invites, chat_departures, sync_epoch;
DROP INDEX messages_chat_id, messages_client_id, messages_sealed, messages_deleted_at;
ALTER TABLE messages DROP COLUMN seq, DROP COLUMN number, DROP COLUMN position, DROP COLUMN client_id,
    DROP COLUMN payload_hash, DROP COLUMN sealed;
CREATE INDEX messages_chat_id ON messages (chat_id, created_at);
CREATE INDEX messages_sender_id ON messages (sender_id);
ALTER TABLE chat_participants DROP COLUMN joined_seq, DROP COLUMN delivered_seq, DROP COLUMN read_seq,
    DROP COLUMN read_number, DROP COLUMN own_after, RESET (fillfactor);
DROP INDEX chat_threads_pair, chat_threads_deleted_at;
ALTER TABLE chat_threads DROP COLUMN last_seq, DROP COLUMN last_number, DROP COLUMN last_position, DROP COLUMN access,
    DROP COLUMN participant_count, DROP COLUMN pair, DROP COLUMN deleted_at, RESET (fillfactor);
DROP TYPE chat_event_type;
