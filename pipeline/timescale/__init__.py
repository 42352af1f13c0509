"""The door to PostgreSQL and TimescaleDB: psycopg and its errors end here."""
