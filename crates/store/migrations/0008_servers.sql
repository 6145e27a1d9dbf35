-- Fleet questions walk over the servers of one project; "the latest of this server" asks for
-- project and server alike.
DROP INDEX items_by_server;
CREATE INDEX items_by_server ON items (project_id, server_id, protected_at);
