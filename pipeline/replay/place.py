"""A sandbox made and removed: principal, topics, role, schema, database. Every step bears repeating."""

import pathlib
from collections.abc import Iterator, Sequence
from contextlib import closing

from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline import clickhouse, migrations
from pipeline.errors import Misconfigured
from pipeline.kafka.admin import Cluster
from pipeline.kafka.groups import Groups
from pipeline.kafka.principals import Principals
from pipeline.migrations.stores import ClickHouse, LockedError, Postgres
from pipeline.replay.names import Sandbox
from pipeline.settings import Settings
from pipeline.timescale import connection
from pipeline.topics import Topic

MIGRATED_WITHIN_S = 120.0  # another sandbox may be at it
WITHOUT_TIMESCALE: frozenset[str] = frozenset()  # its functions lie in schemas that a sandbox does not see
# What a sandbox's role does is its schema's, whatever a name would find elsewhere.
ROLE = """
    DO $$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN CREATE ROLE {role} LOGIN; END IF;
    END $$;
    ALTER ROLE {role} PASSWORD {password} CONNECTION LIMIT 20;
    ALTER ROLE {role} SET search_path = {role};
    CREATE SCHEMA IF NOT EXISTS {role};
    GRANT ALL ON SCHEMA {role} TO {role};
"""


def make(sandbox: Sandbox, live: Settings, own: Settings, topics: Sequence[Topic], migrations_in: pathlib.Path) -> None:
    """Make what is not there of `sandbox`; `own` are its settings, `topics` those that it is to have, by their live
    names.

    Raises Misconfigured where a server refuses, Unavailable where one is away.
    """
    password = own.kafka.sasl_password.get_secret_value()
    if live.replay.kafka_servers:
        Principals(live.kafka).make(sandbox.owner, password, sandbox.prefix)
    cluster = Cluster(live.kafka)
    there = set(cluster.names())
    for topic in topics:
        name = sandbox.topic(topic.name)
        if name not in there:
            # Nothing expires by its old timestamps: the topic goes when the sandbox goes.
            config = {**topic.config, "retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
            counts = {"partitions": topic.partitions, "replication_factor": topic.replication_factor}
            cluster.create(name, **counts, config=config)
    _make_role(sandbox, live, password)
    _make_database(sandbox, live)
    as_admin = live.clickhouse.model_copy(update={"database": sandbox.owner})
    with (
        Postgres.opened(own.postgres, WITHOUT_TIMESCALE) as postgres,
        ClickHouse.opened(as_admin) as store,
    ):
        for attempt in Retrying(
            retry=retry_if_exception_type(LockedError), stop=stop_after_delay(MIGRATED_WITHIN_S), wait=wait_fixed(0.5),
            reraise=True,
        ):  # fmt: skip
            with attempt:
                migrations.up(migrations.plan([postgres, store], migrations_in), [postgres, store])


def remove(sandbox: Sandbox, live: Settings) -> None:
    """Remove whatever is there of it on the servers."""
    cluster = Cluster(live.kafka)
    for name in cluster.names():
        if name.startswith(sandbox.prefix):
            cluster.delete(name)
    groups = Groups(live.kafka)
    for name in groups.names(sandbox.prefix):
        groups.delete(name)
    if live.replay.kafka_servers:
        Principals(live.kafka).remove(sandbox.owner)
    with closing(clickhouse.connect(live.clickhouse)) as client, clickhouse.translated():
        client.command(f"DROP DATABASE IF EXISTS {sandbox.owner} SYNC")
    with connection.connect(live.postgres) as admin, connection.translated():
        role = sql.Identifier(sandbox.owner)
        admin.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(role))
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", (sandbox.owner,)).fetchone() is not None:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))


def left(sandbox: Sandbox, live: Settings) -> list[str]:
    """What a listing of every server and the disk still shows of it; empty after `remove`."""
    folder = sandbox.folder(live)
    return [*on_servers(sandbox, live), *([f"folder {folder}"] if folder.exists() else [])]


def on_servers(sandbox: Sandbox, live: Settings) -> list[str]:
    """The same without the disk."""
    return [*_on_servers(sandbox, live)]


def _on_servers(sandbox: Sandbox, live: Settings) -> Iterator[str]:
    yield from (f"topic {name}" for name in Cluster(live.kafka).names() if name.startswith(sandbox.prefix))
    yield from (f"group {name}" for name in Groups(live.kafka).names(sandbox.prefix))
    if live.replay.kafka_servers:
        yield from (f"principal {name}" for name in Principals(live.kafka).names() if name == sandbox.owner)
    with closing(clickhouse.connect(live.clickhouse)) as client, clickhouse.translated():
        if client.command(f"EXISTS DATABASE {sandbox.owner}"):
            yield f"database {sandbox.owner}"
    with connection.connect(live.postgres) as admin, connection.translated():
        for kind, catalogue, column in (("schema", "pg_namespace", "nspname"), ("role", "pg_roles", "rolname")):
            query = sql.SQL("SELECT FROM {} WHERE {} = %s").format(sql.Identifier(catalogue), sql.Identifier(column))
            if admin.execute(query, (sandbox.owner,)).fetchone() is not None:
                yield f"{kind} {sandbox.owner}"


def _make_role(sandbox: Sandbox, live: Settings, password: str) -> None:
    words = {
        "role": sql.Identifier(sandbox.owner),
        "literal": sql.Literal(sandbox.owner),
        "password": sql.Literal(password),
    }
    try:
        with connection.connect(live.postgres) as admin, connection.translated():
            admin.execute(sql.SQL(ROLE).format(**words))
    except Misconfigured as error:
        raise Misconfigured(
            "The user of postgres.dsn may not make a sandbox's role and schema: give it CREATEROLE and CREATE on the "
            f"database. {error}"
        ) from error


def _make_database(sandbox: Sandbox, live: Settings) -> None:
    with closing(clickhouse.connect(live.clickhouse)) as client:
        try:
            with clickhouse.translated():
                client.command(f"CREATE DATABASE IF NOT EXISTS {sandbox.owner}")
        except (clickhouse.Error, Misconfigured) as error:
            raise Misconfigured(
                f"ClickHouse makes no database {sandbox.owner}: {' '.join(str(error).split())} "
                "Let clickhouse.user make, fill and drop databases sandbox_*."
            ) from error
