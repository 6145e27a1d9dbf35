-- One text for SQLite and PostgreSQL: ids TEXT, numbers and times (microseconds UTC) BIGINT,
-- what no query looks into TEXT holding JSON. Tombstones stay, so nothing cascades.
CREATE TABLE checkpoints (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    plan_id TEXT NOT NULL,
    plan_name TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX checkpoints_by_plan ON checkpoints (plan_id);

-- `*_folded`, `zone`, `private_ip`, `public_ip` are copies to search in; `details` tells.
CREATE TABLE items (
    id TEXT NOT NULL PRIMARY KEY,
    checkpoint_id TEXT NOT NULL REFERENCES checkpoints (id),
    project_id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    server_id TEXT NOT NULL,
    name TEXT NOT NULL,
    name_folded TEXT NOT NULL,
    server_name_folded TEXT NOT NULL,
    zone TEXT NOT NULL,
    private_ip TEXT NOT NULL,
    public_ip TEXT NOT NULL,
    status TEXT NOT NULL,
    method TEXT NOT NULL,
    progress BIGINT NOT NULL,
    details TEXT NOT NULL,
    fault TEXT,
    snapshot_id TEXT,
    tree_id TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    protected_at BIGINT,
    finished_at BIGINT,
    deleted_at BIGINT
);
CREATE INDEX items_by_project ON items (project_id, created_at, id);
CREATE INDEX items_by_checkpoint ON items (checkpoint_id);
CREATE INDEX items_by_server ON items (server_id, protected_at);

CREATE TABLE item_tags (
    item_id TEXT NOT NULL REFERENCES items (id),
    position BIGINT NOT NULL,
    tag_key TEXT NOT NULL,
    tag_value TEXT NOT NULL,
    PRIMARY KEY (item_id, tag_key)
);

CREATE TABLE volume_backups (
    id TEXT NOT NULL PRIMARY KEY,
    item_id TEXT NOT NULL REFERENCES items (id),
    position BIGINT NOT NULL,
    details TEXT NOT NULL,
    stored TEXT,
    UNIQUE (item_id, position)
);

CREATE TABLE restores (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL REFERENCES checkpoints (id),
    item_id TEXT NOT NULL REFERENCES items (id),
    server_id TEXT NOT NULL,
    details TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX restores_by_project ON restores (project_id, created_at, id);
