-- Fleet questions walk over the servers of one project, past what was deleted.
CREATE INDEX items_by_project_server ON items (project_id, server_id) WHERE status <> 'deleted';
