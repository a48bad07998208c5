-- Subscriptions that are paid for: by a payment that is used once, or by a voucher.

-- migrate:up

-- payment_proof is the SHA-256 of how a payment proves itself (models/subscriptions.py): the proof itself is not kept.
-- starts_at is when the paid time begins; a renewal's is the end of what it prolongs.
ALTER TABLE subscriptions
    ADD COLUMN starts_at timestamptz NOT NULL DEFAULT now(),
    ADD CONSTRAINT subscriptions_payment_proof_key UNIQUE (payment_proof),
    ADD CONSTRAINT subscriptions_payment_proof_check CHECK (payment_proof ~ '^[0-9a-f]{64}$');
CREATE INDEX subscriptions_ended ON subscriptions (expires_at);

-- Payments that can buy nothing any more: they were used, or were taken back before that. They outlive subscriptions,
-- and say nothing of who paid, nor when.
CREATE TABLE spent_proofs (
    proof_hash text PRIMARY KEY CHECK (proof_hash ~ '^[0-9a-f]{64}$')
);

-- Codes that operators hand out. A code has 85 random bits, so that its SHA-256 needs no salt.
CREATE TABLE vouchers (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    proof_hash text NOT NULL UNIQUE CHECK (proof_hash ~ '^[0-9a-f]{64}$'),
    tier       subscription_tier NOT NULL,
    days       integer NOT NULL CHECK (days BETWEEN 1 AND 3660),
    batch      text CHECK (batch <> ''),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    used_at    timestamptz,
    revoked_at timestamptz
);
CREATE INDEX vouchers_created_at ON vouchers (created_at, id);
CREATE INDEX vouchers_batch ON vouchers (batch) WHERE batch IS NOT NULL;

-- migrate:down

DROP TABLE vouchers, spent_proofs;
DROP INDEX subscriptions_ended;
ALTER TABLE subscriptions DROP CONSTRAINT subscriptions_payment_proof_check,
    DROP CONSTRAINT subscriptions_payment_proof_key, DROP COLUMN starts_at;
