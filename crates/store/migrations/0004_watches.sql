-- How far reading back each repository has come.
CREATE TABLE watches (
    project_id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
