"""The record: its schemas, its identity, and the container file that carries it."""
