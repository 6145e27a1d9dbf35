-- What every verdict asks of `state`, which grows with the repository. Where it is not there,
-- `state` is of an older form: nothing counts as read, and whether something is lost is kept.
ALTER TABLE watches ADD COLUMN seen TEXT;
-- Losses that readers told of since a look over the repository began.
ALTER TABLE watches ADD COLUMN losses BIGINT NOT NULL DEFAULT 0;
