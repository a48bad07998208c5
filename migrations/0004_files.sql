-- Files: who owns which bytes in the storage, and who may have them. Names of files are never known here.

-- migrate:up

CREATE TYPE file_state AS ENUM ('uploading', 'complete');

CREATE TABLE files (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_id        uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    chat_id         uuid REFERENCES chat_threads (id) ON DELETE SET NULL,  -- its members may read the file
    size            bigint NOT NULL CHECK (size > 0),
    sha256          bytea CHECK (octet_length(sha256) = 32),  -- as announced; a resumable upload may tell none
    media_type      text,
    storage_key     text COLLATE "C" NOT NULL UNIQUE CHECK (storage_key ~ '^[0-9a-f]{32}$'),
    state           file_state NOT NULL DEFAULT 'uploading',
    created_at      timestamptz NOT NULL DEFAULT now(),
    completed_at    timestamptz,
    expires_at      timestamptz DEFAULT now() + interval '24 hours',  -- unless it is complete by then
    -- How an upload stands: what of it is safe in the storage, and its SHA-256 when it is whole and was hashed on its way.
    resumable       boolean NOT NULL,
    received        bigint NOT NULL DEFAULT 0 CHECK (received BETWEEN 0 AND size),
    received_sha256 bytea CHECK (octet_length(received_sha256) = 32),
    upload_metadata text,  -- a tus client may ask for what it said; forgotten at the end
    part_size       bigint NOT NULL DEFAULT 0,  -- and the next two: of S3's multipart uploads
    upload_id       text,
    part_etags      text[] NOT NULL DEFAULT '{}',
    CHECK ((state = 'complete') = (expires_at IS NULL)),
    CHECK ((state = 'complete') = (completed_at IS NOT NULL)),
    CHECK (state = 'uploading' OR sha256 IS NOT NULL)
);
CREATE INDEX files_owner_id ON files (owner_id, created_at DESC, id DESC);
CREATE INDEX files_chat_id ON files (chat_id) WHERE chat_id IS NOT NULL;
CREATE INDEX files_expires_at ON files (expires_at) WHERE expires_at IS NOT NULL;

-- What a user's files take, unfinished ones as large as they are to become. It is a row, and not a sum, so that one
-- statement can both look whether there is room and take it. Made after `files`: what refers to a user is deleted in
-- that order, and so everywhere a file is locked before its owner's count.
CREATE TABLE file_usage (
    user_id uuid PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    bytes   bigint NOT NULL CHECK (bytes >= 0),
    files   bigint NOT NULL CHECK (files >= 0)
);

-- Bytes whose row is gone, still to be removed from the storage. It may be away when the row goes.
CREATE TABLE file_removals (
    storage_key text COLLATE "C" PRIMARY KEY,
    upload_id   text,
    due_at      timestamptz NOT NULL
);
CREATE INDEX file_removals_due_at ON file_removals (due_at);

-- In the database, so that no way of deleting a file, an account among them, can forget its bytes or its owner's count.
CREATE FUNCTION let_files_go() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO file_removals (storage_key, upload_id, due_at)
    -- An address that lets the client put an object in the bucket outlives the row: it is an hour old at the most.
    SELECT storage_key, upload_id, now() + CASE WHEN state = 'uploading' THEN interval '65 minutes' ELSE '0' END
    FROM gone ON CONFLICT (storage_key) DO NOTHING;
    -- Counts are locked in one order, for two statements may delete files of the same users.
    PERFORM 1 FROM file_usage WHERE user_id IN (SELECT owner_id FROM gone) ORDER BY user_id FOR UPDATE;
    UPDATE file_usage SET bytes = file_usage.bytes - freed.bytes, files = file_usage.files - freed.files
    FROM (SELECT owner_id, sum(size) AS bytes, count(*) AS files FROM gone GROUP BY owner_id) AS freed
    WHERE user_id = freed.owner_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER files_let_go AFTER DELETE ON files REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION let_files_go();

-- migrate:down

DROP TABLE file_removals, file_usage, files;
DROP FUNCTION let_files_go;
DROP TYPE file_state;
