-- Plans that explained answers named, and leases that some of them hold on their backups.
CREATE TABLE plans (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL,
    item_id TEXT NOT NULL REFERENCES items (id),
    details TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    lease_until BIGINT
);
CREATE INDEX plans_by_project ON plans (project_id, created_at, id);
CREATE INDEX plans_leases ON plans (item_id, lease_until) WHERE lease_until IS NOT NULL;
