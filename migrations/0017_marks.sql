-- Receipts are marks: when each moved, for `/sync`; and who has posted in a chat, for who may see marks in a large one.

-- migrate:up

-- The first and the newest seq at which a participant has posted since they joined; 0 for none.
ALTER TABLE chat_participants
    ADD COLUMN posted_first bigint NOT NULL DEFAULT 0,
    ADD COLUMN posted_last  bigint NOT NULL DEFAULT 0;

-- The position (models/sync.py) at which the delivered_seq and read_seq of a participant last moved. A separate table:
-- an index over a column of chat_participants would make every update of these rows more expensive.
CREATE TABLE chat_marks (
    chat_id  uuid NOT NULL,
    user_id  uuid NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (chat_id, user_id),
    FOREIGN KEY (chat_id, user_id) REFERENCES chat_participants (chat_id, user_id) ON DELETE CASCADE
);
CREATE INDEX chat_marks_position ON chat_marks (chat_id, position);

-- migrate:down
-- Nothing: there is no way down (docs/decisions/0029-migrations.md). dbmate wants the line.
