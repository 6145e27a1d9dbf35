CREATE TABLE jobs (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    item_id TEXT NOT NULL REFERENCES items (id),
    status TEXT NOT NULL,
    work TEXT NOT NULL,
    run_at BIGINT NOT NULL,
    lease_owner TEXT,
    lease_until BIGINT,
    fence BIGINT NOT NULL,
    restarts BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    cancel_requested BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX jobs_live ON jobs (run_at, created_at, id) WHERE status <> 'done';

CREATE TABLE claims (
    kind TEXT NOT NULL,
    object_id TEXT NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id),
    mode TEXT NOT NULL,
    PRIMARY KEY (kind, object_id, job_id)
);
-- What the code promises, the database keeps: never two exclusive claims on one thing.
CREATE UNIQUE INDEX claims_exclusive ON claims (kind, object_id) WHERE mode = 'exclusive';
CREATE INDEX claims_by_job ON claims (job_id);
