-- Chats that a participant does not see because of a block, and invitations into chats of many.

-- migrate:up

SET LOCAL lock_timeout = '333ms'; -- three tables in use, one after the other

ALTER TYPE chat_event_type ADD VALUE IF NOT EXISTS 'participant_invited';

-- `accepted`: wrote here, made the chat, joined it or accepted an invitation. NULL in rows of servers before this file:
-- then the messages of the chat say it (models/concealment.py).
ALTER TABLE chat_participants
    ADD COLUMN accepted  boolean,
    ADD COLUMN concealed boolean NOT NULL DEFAULT false,  -- the chat is not shown to this participant
    ADD COLUMN masked    boolean NOT NULL DEFAULT false,  -- its title, avatar and settings are not shown to them
    ALTER COLUMN accepted SET DEFAULT false;

-- Users who were invited into a chat instead of being added. `waiting`: the user has not answered. `declined`: the
-- user does not see it (any more), all others see it as waiting. `withdrawn`: an admin took a declined one back; a new
-- one is declined as well. `inside`: the user is a participant, and is asked whether to stay.
CREATE TABLE chat_invitations (
    chat_id    uuid NOT NULL REFERENCES chat_threads (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    invited_by uuid REFERENCES users (id) ON DELETE SET NULL,
    role       participant_role NOT NULL DEFAULT 'member',
    state      text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'declined', 'withdrawn', 'inside')),
    seq        bigint NOT NULL DEFAULT 0,  -- of its event; of the newest one where it has none
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chat_id, user_id)
);
CREATE INDEX chat_invitations_user_id ON chat_invitations (user_id, created_at, chat_id)
    WHERE state IN ('waiting', 'inside');
CREATE INDEX chat_invitations_of_user ON chat_invitations (user_id);
CREATE INDEX chat_invitations_invited_by ON chat_invitations (invited_by);

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
