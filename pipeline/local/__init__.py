"""The whole stack on this machine: real Kafka, PostgreSQL and ClickHouse, and our own processes beside them."""

from pipeline.local.regions import Regions
from pipeline.local.stack import NAMES, Stack

__all__ = ["NAMES", "Regions", "Stack"]
