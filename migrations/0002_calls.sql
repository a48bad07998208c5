-- What the server must know of a call beyond the seed's columns.

-- migrate:up

ALTER TABLE call_sessions
    -- How many ICE candidates instances have set aside for it, of the 300 that it may have in all.
    ADD COLUMN candidates smallint NOT NULL DEFAULT 0,
    -- The session that answered: whose answer was lost on its way back may send it again. No foreign key, for the call
    -- outlives the session.
    ADD COLUMN answered_by uuid;

-- migrate:down

ALTER TABLE call_sessions DROP COLUMN candidates, DROP COLUMN answered_by;
