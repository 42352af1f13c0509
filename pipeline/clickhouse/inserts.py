"""Batches of container files into a table, each once."""

from collections.abc import Sequence

from clickhouse_connect.driver.client import Client

from pipeline.clickhouse import Error, connect, quoted, sentence, translated
from pipeline.clickhouse.body import body
from pipeline.errors import Misconfigured, Rejected
from pipeline.record.schema import Schema
from pipeline.settings import ClickHouseSettings

INSERT_SETTINGS = {
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "wait_end_of_query": 1,  # the answer, and the count in it, come when all views have written
    "input_format_avro_allow_missing_fields": 1,  # a column that a later version of the schema brought has its default
}


class Inserts:
    """Records into one table; safe to call from several threads."""

    def __init__(self, settings: ClickHouseSettings, table: str) -> None:
        self._settings = settings
        self._table = table
        self._opened: tuple[Client, int] | None = None

    def insert(self, known: Schema, values: Sequence[bytes], *, records: int, token: str) -> None:
        """Insert container files of one schema, `records` records in all, and through the table's views.

        The same token within the last 1,000 inserts changes nothing. Raise Unavailable where the server is away or
        cannot take more now; Rejected where a file cannot be read or holds fewer records than promised;
        Misconfigured where it would refuse any file: a table or a right is missing.
        """
        if self._opened is None:
            client = connect(self._settings)
            self._opened = client, self._views(client)
        client, views = self._opened
        form, parts = body(known, values)
        try:
            with translated():
                summary = client.raw_insert(
                    quoted(self._table),
                    insert_block=iter(parts),  # type: ignore[arg-type]  # it sends each as it is
                    fmt=form,
                    settings={**INSERT_SETTINGS, "insert_deduplication_token": token},
                )
        except Error as error:
            raise Misconfigured(
                f"ClickHouse takes nothing into {self._table}: {sentence(error)} Look at `pipeline migrate status` "
                "and at what clickhouse.user may do."
            ) from error
        # A record is read once by the insert and once by each view, and again by views of the views' tables.
        read = int(summary.summary["read_rows"])
        if read < records * (1 + views):
            views = self._views(client)  # one may have gone since
            self._opened = client, views
            if read < records * (1 + views):
                raise Rejected(f"ClickHouse read {read / (1 + views):g} records where {records} were promised.")

    def _views(self, client: Client) -> int:
        """How many views read the table."""
        with translated():
            found = client.query(
                "SELECT length(dependencies_table), engine FROM system.tables"
                " WHERE database = currentDatabase() AND name = {table:String}",
                parameters={"table": self._table},
            ).result_rows
        if not found or found[0] == (0, "Null"):
            raise Misconfigured(f"ClickHouse has no table {self._table} with views: run `pipeline migrate up`.")
        views: int = found[0][0]
        return views
