"""The sandbox's ClickHouse, asked within a limit of memory and behind everybody else."""

from collections.abc import Iterable
from typing import Any

from clickhouse_connect.driver.client import Client


class Asked:
    """Statements of one comparison; none of them takes more than `memory_bytes`."""

    def __init__(self, client: Client, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._client = client
        self._settings = {
            "max_memory_usage": memory_bytes,
            # Spilling costs ten times the CPU: it is for groups that a range of keys does not bound.
            "max_bytes_before_external_group_by": memory_bytes // 2,
            "max_bytes_before_external_sort": memory_bytes // 4,
            "max_bytes_ratio_before_external_group_by": 0,
            "max_bytes_ratio_before_external_sort": 0,
            "join_algorithm": "grace_hash",  # spills
            "max_bytes_in_join": memory_bytes // 8,
            "max_threads": 1,
            "max_insert_threads": 1,
            "max_block_size": 16_384,
            "preferred_block_size_bytes": 1_000_000,
            "min_insert_block_size_rows": 1_000_000,
            "min_insert_block_size_bytes": memory_bytes // 16,
            "max_partitions_per_insert_block": 0,
            "os_thread_priority": 19,
        }

    def command(self, statement: str, **parameters: Any) -> None:
        self._client.command(statement, parameters=parameters, settings=self._settings)

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        return list(self._client.query(query, parameters=parameters, settings=self._settings).named_results())

    def insert(self, table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        self._client.insert(table, rows, column_names=columns)

    def insert_text(self, statement: str, lines: Iterable[bytes]) -> None:
        """An INSERT that reads tab-separated values, and the values."""
        self._client.raw_insert(
            None,  # type: ignore[arg-type]  # the statement names it
            insert_block=b"".join([statement.encode(), b" FORMAT TabSeparated\n", *lines]),
            settings=self._settings,
        )
