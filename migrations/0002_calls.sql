-- What the server must know of a call beyond the seed's columns.

-- migrate:up

ALTER TABLE call_sessions
    -- How many ICE candidates instances have set aside for it, of the 300 that it may have in all.
    ADD COLUMN candidates smallint NOT NULL DEFAULT 0,
    -- SHA-256 of the answer that was taken: whose ack was lost may send it again, and no other device can.
    ADD COLUMN answer_hash bytea CHECK (octet_length(answer_hash) = 32);

-- migrate:down

ALTER TABLE call_sessions DROP COLUMN candidates, DROP COLUMN answer_hash;
