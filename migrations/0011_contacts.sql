-- Whom a user knows by what they did themselves, for settings that are open to contacts only.

-- migrate:up

SET LOCAL lock_timeout = '500ms'; -- two tables in use, one after the other

-- One row a pair and direction, written once: user_id has written to contact_id in a chat of two, called them, or
-- answered their call. Verifications have a table already. It outlives the messages, chats and calls it came from.
CREATE TABLE user_contacts (
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    contact_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, contact_id),
    CHECK (user_id <> contact_id)
);
CREATE INDEX user_contacts_contact_id ON user_contacts (contact_id);

-- In the database, so that messages which a server of the version before stores meanwhile count, too. OFFSET 0 makes
-- each row be looked up by its key, whatever size the tables had when the plan was made.
CREATE FUNCTION note_contacts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO user_contacts (user_id, contact_id)
    SELECT DISTINCT written.sender_id, other.user_id
    FROM (SELECT DISTINCT chat_id, sender_id FROM stored WHERE sender_id IS NOT NULL) AS written,
        LATERAL (SELECT FROM chat_threads
                 WHERE id = written.chat_id AND type IN ('direct', 'secret') OFFSET 0) AS two,
        LATERAL (SELECT user_id FROM chat_participants
                 WHERE chat_id = written.chat_id AND user_id <> written.sender_id OFFSET 0) AS other
    WHERE NOT EXISTS (SELECT 1 FROM user_contacts
                      WHERE user_id = written.sender_id AND contact_id = other.user_id OFFSET 0)
    ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER messages_note_contacts AFTER INSERT ON messages
    REFERENCING NEW TABLE AS stored FOR EACH STATEMENT EXECUTE FUNCTION note_contacts();

-- migrate:down
