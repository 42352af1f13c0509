"""A registry for the gateway to ask."""

from tests.registry.conftest import database, registry

__all__ = ["database", "registry"]
