-- The registered tables: what `pipeline registry` knows, a row each. metadata is the document that its HTTP gives of the
-- table (name, version, Avro schema, stores, keys, order, time, retention, owner, labels, state, history); name, version
-- and state stand beside it for the registry's own conditions. Nothing is ever deleted.
CREATE TABLE table_registry (
    name text PRIMARY KEY,
    version integer NOT NULL,
    state text NOT NULL,
    metadata jsonb NOT NULL
);
