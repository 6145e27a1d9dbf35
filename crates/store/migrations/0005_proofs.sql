-- Readings back and drills of single backups. `read_ok` (1 read, -1 not readable, 0 not
-- known) and `drill` repeat what of `outcome` evidence is made of. `paced` is 0 where somebody waits.
CREATE TABLE proofs (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    item_id TEXT NOT NULL REFERENCES items (id),
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    outcome TEXT,
    paced BIGINT NOT NULL,
    read_ok BIGINT NOT NULL,
    drill TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);
CREATE INDEX proofs_by_item ON proofs (item_id, created_at, id);
CREATE INDEX proofs_waiting ON proofs (created_at, id) WHERE status <> 'done';
