"""The registry of tables: registers, shows, evolves and retires them over HTTP, and keeps them in PostgreSQL."""
