"""OTLP in, regional Kafka in the middle, idempotent TimescaleDB and ClickHouse out."""

__version__ = "0.1.0"
