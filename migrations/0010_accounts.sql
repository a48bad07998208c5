-- What is remembered of erased accounts and replaced keys, and emoji of up to 64 bytes.

-- migrate:up

SET LOCAL lock_timeout = '500ms'; -- two tables in use, one after the other

-- Names and keys of erased accounts, which are not given out again for a while (models/tombstones.py): SHA-256 of each.
CREATE TABLE tombstones (
    hash  bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    until timestamptz NOT NULL
);
CREATE INDEX tombstones_until ON tombstones (until);

-- SHA-256 of signed prekeys and last-resort Kyber keys whose rows were cleaned up. Their signatures say nothing of when
-- they were made, so that one whose private half has leaked could be put in place again.
CREATE TABLE superseded_prekeys (
    user_id  uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key_hash bytea NOT NULL CHECK (octet_length(key_hash) = 32),
    PRIMARY KEY (user_id, key_hash)
);

-- How long access tokens live, by every setting that servers have run with, and when one last did. Ended sessions are
-- remembered by the longest. Servers before this one left no note: their tokens live for 30 days at most.
CREATE TABLE token_lifetimes (
    seconds double precision PRIMARY KEY CHECK (seconds > 0),
    seen_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO token_lifetimes (seconds) VALUES (2592000);

ALTER TABLE message_reactions
    DROP CONSTRAINT message_reactions_emoji_check,
    ADD CONSTRAINT message_reactions_emoji_check CHECK (octet_length(emoji) BETWEEN 1 AND 64) NOT VALID;

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
