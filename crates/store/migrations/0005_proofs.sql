-- Readings back and drills of single backups. `read_ok` and `drill` repeat what of `outcome`
-- evidence is made of.
CREATE TABLE proofs (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    item_id TEXT NOT NULL REFERENCES items (id),
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    outcome TEXT,
    read_ok BIGINT NOT NULL,
    drill TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);
CREATE INDEX proofs_by_item ON proofs (item_id, created_at, id);
CREATE INDEX proofs_waiting ON proofs (created_at, id) WHERE status <> 'done';
