-- Verdicts that were kept as signed records, each naming the one before it.
CREATE TABLE receipts (
    project_id TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    body TEXT NOT NULL,
    hash TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (project_id, sequence)
);
