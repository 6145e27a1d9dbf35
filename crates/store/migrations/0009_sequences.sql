-- The order in which backups were finished in their project, and in which proofs ended: what
-- was seen after what is told by it and not by clocks, which may be wrong or set back. What was seen
-- before this migration counts for nothing until it is seen again.
ALTER TABLE items ADD COLUMN sequence BIGINT;
UPDATE items SET sequence = n.place FROM (
    SELECT id, ROW_NUMBER() OVER (PARTITION BY project_id ORDER BY finished_at, id) AS place
    FROM items WHERE snapshot_id IS NOT NULL
) n WHERE n.id = items.id;
CREATE INDEX items_by_sequence ON items (project_id, sequence);
ALTER TABLE proofs ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;
CREATE INDEX proofs_by_sequence ON proofs (sequence);
