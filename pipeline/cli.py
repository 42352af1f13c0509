"""The command `pipeline`: parse, call one thing, exit code.

Exit codes: 0 fine; 1 a difference was found; 2 misconfigured (settings, files, command line); 3 the world is away.
"""

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import typer

from pipeline import errors, settings

if TYPE_CHECKING:
    from pipeline.local import Stack

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
local_app = typer.Typer(
    no_args_is_help=True, help="The whole stack on this machine, for demos, tests and hands-on work."
)
tenants_app = typer.Typer(no_args_is_help=True, help="Who may send to the gateway.")
topics_app = typer.Typer(no_args_is_help=True, help="Topics as code: topics/*.yaml against the cluster.")
migrate_app = typer.Typer(no_args_is_help=True, help="Migrations of PostgreSQL and ClickHouse.")
dlq_app = typer.Typer(no_args_is_help=True, help="Dead letters: messages that no store could take.")
agents_app = typer.Typer(no_args_is_help=True, help="Where the writers stand in Kafka.")
app.add_typer(local_app, name="local")
app.add_typer(agents_app, name="agents")
app.add_typer(dlq_app, name="dlq")
app.add_typer(tenants_app, name="tenants")
app.add_typer(topics_app, name="topics")
app.add_typer(migrate_app, name="migrate")


def show(value: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    print()


Workers = Annotated[int | None, typer.Option(min=1, max=64, help="Processes; default from the settings.")]


@app.command()
def gateway(
    workers: Workers = None,
    check: Annotated[bool, typer.Option("--check", help="Only check settings, tenants and certificates.")] = False,
) -> None:
    """Take OTLP over gRPC and HTTP; answer OK once every accepted record is safe in Kafka or in the spool."""
    if check:
        from pipeline.gateway import main as room

        print(f"The gateway {room.check(settings.load())}.")
    else:
        _run_workers("gateway", workers)


@tenants_app.command("key")
def tenants_key() -> None:
    """Print a new API key, once, and the hash of it for the tenants file."""
    from pipeline.gateway.tenants import new_key

    key, kept = new_key()
    print(f"key for the client    {key}")
    print(f'keys in the file      ["{kept}"]')


@app.command("pg_writer")
def pg_writer(workers: Workers = None) -> None:
    """Write metric points from Kafka into PostgreSQL, each exactly once."""
    _run_workers("pg_writer", workers)


@app.command("ch_writer")
def ch_writer(workers: Workers = None) -> None:
    """Write logs, spans and metric points from Kafka into ClickHouse, each visible once."""
    _run_workers("ch_writer", workers)


def _run_workers(process: str, workers: int | None) -> None:
    """Be the one process, or the supervisor of several. Rooms are imported here: a command loads only its own."""
    from pipeline import workers as processes
    from pipeline.telemetry import log

    if workers is not None:
        os.environ[f"{settings.PREFIX}{process.upper()}__WORKERS"] = str(workers)
    loaded = settings.load()
    number = processes.number()
    log.configure(process)
    if number is None and getattr(loaded, process).workers > 1:
        sys.exit(processes.supervise(process, getattr(loaded, process).workers))
    if process == "gateway":
        from pipeline.gateway.main import run

        run(loaded)
    else:
        from pipeline.agents.worker import run_writer

        run_writer(process, loaded, number or 0)


AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@topics_app.command("plan")
def topics_plan(as_json: AsJson = False) -> None:
    """Print what `apply` would change in the cluster; exit 1 where that is something."""
    from pipeline import topics
    from pipeline.kafka.admin import Cluster

    _show_plan(topics.plan(topics.load(), Cluster(settings.load().kafka)), as_json)


@topics_app.command("apply")
def topics_apply(yes: Yes = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed."""
    from pipeline import topics
    from pipeline.kafka.admin import Cluster

    cluster = Cluster(settings.load().kafka)
    changes = topics.plan(topics.load(), cluster)
    if _agreed(changes, yes):
        topics.apply(changes, cluster)


class Writer(StrEnum):
    pg_writer = "pg_writer"
    ch_writer = "ch_writer"


@agents_app.command("gaps")
def agents_gaps(as_json: AsJson = False) -> None:
    """Print what Kafka removed before the writers read it; exit 1 where that is something."""
    from pipeline.agents import gaps

    loaded = settings.load()
    _show_plan([gap for writer in Writer for gap in gaps.find(writer.value, loaded)], as_json)


@agents_app.command("accept_gap")
def agents_accept_gap(
    writer: Writer,
    topic: Annotated[str, typer.Option()],
    partition: Annotated[int, typer.Option(min=0)],
    yes: Yes = False,
) -> None:
    """Let a stopped writer go on at the first message that a partition has; print what is given up, and ask."""
    from pipeline.agents import gaps

    loaded = settings.load()
    found = [gap for gap in gaps.find(writer.value, loaded) if (gap.topic, gap.partition) == (topic, partition)]
    if _agreed(found, yes):
        gaps.accept(found, loaded)


DeadTopic = Annotated[str | None, typer.Option("--topic", help="Origin or dead-letter topic; default all.")]
Reason = Annotated[str | None, typer.Option("--reason", help="A part of the reason's text.")]
Messages = Annotated[list[str] | None, typer.Option("--message", help="As logs_raw_dlq/0@17; may be repeated.")]
Interval = Annotated[
    str | None, typer.Option("--time", help="Dead-lettered from/to before, as 2026-11-20T10:00/2026-11-20T11:00.")
]


@dlq_app.command("list")
def dlq_list(topic: DeadTopic = None, as_json: AsJson = False) -> None:
    """Count the dead letters that were neither replayed nor dropped, by topic, writer and reason; exit 1 with any."""
    from pipeline import dlq

    _show_plan(dlq.Letters(settings.load().kafka).overview(dlq.Selection(topic=topic)), as_json)


@dlq_app.command("show")
def dlq_show(name: Annotated[str, typer.Argument(help="As logs_raw_dlq/0@17.")], as_json: AsJson = False) -> None:
    """Print one dead letter: why, where from, headers, its records as far as they decode, its first bytes."""
    from pipeline import dlq

    described = dlq.describe(dlq.Letters(settings.load().kafka).one(name))
    if as_json:
        show(described)
        return
    records = described.pop("records")
    for key, value in described.items():
        print(f"{key:<14} {value}")
    print(f"{'records':<14} {len(records)}")
    for record in records:
        print(f"  {json.dumps(record, ensure_ascii=False, default=str)}")


@dlq_app.command("replay")
def dlq_replay(
    topic: DeadTopic = None,
    reason: Reason = None,
    message: Messages = None,
    time: Interval = None,
    yes: Yes = False,
) -> None:
    """Print what goes back to which topic, ask, and send it there as it came; it is not listed any more."""
    _handle("replay", (topic, reason, message or (), time), yes)


@dlq_app.command("drop")
def dlq_drop(
    topic: DeadTopic = None,
    reason: Reason = None,
    message: Messages = None,
    time: Interval = None,
    yes: Yes = False,
) -> None:
    """Print what is given up, ask, and list it no more; it stays in Kafka until retention removes it."""
    _handle("drop", (topic, reason, message or (), time), yes)


def _handle(
    action: Literal["replay", "drop"], selected: tuple[str | None, str | None, Sequence[str], str | None], yes: bool
) -> None:
    from pipeline import dlq

    selection = dlq.Selection.parse(*selected)
    letters = dlq.Letters(settings.load().kafka)
    changes = letters.plan(action, selection)
    for change in changes:
        if change.action == "leave":
            print(change)
    doing = [change for change in changes if change.action != "leave"]
    if _agreed(doing, yes):
        letters.apply(doing)


Store = Annotated[Literal["postgres", "clickhouse"] | None, typer.Option(help="Only this store; default both.")]


@migrate_app.command("status")
def migrate_status(store: Store = None, as_json: AsJson = False) -> None:
    """Print every migration and its state; exit 1 where one is not applied."""
    from pipeline import migrations

    with migrations.opened(settings.load(), store) as stores:
        states = migrations.status(stores)
    if as_json:
        show([state.as_json() for state in states])
    else:
        for state in states:
            print(state)
    if any(state.state != "applied" for state in states):
        raise typer.Exit(1)


@migrate_app.command("plan")
def migrate_plan(store: Store = None, as_json: AsJson = False) -> None:
    """Print what `up` would run; exit 1 where that is something."""
    from pipeline import migrations

    with migrations.opened(settings.load(), store) as stores:
        _show_plan(migrations.plan(stores), as_json)


@migrate_app.command("up")
def migrate_up(store: Store = None, yes: Yes = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed."""
    from pipeline import migrations

    loaded = settings.load()
    with migrations.opened(loaded, store) as stores:
        planned = migrations.plan(stores)
        if _agreed(planned, yes):
            migrations.up(planned, stores, loaded)


Signal = StrEnum("Signal", ["logs", "metrics", "traces"])  # Typer takes no list of Literals
Signals = Annotated[list[Signal] | None, typer.Option("--signal", help="May be repeated; default all.")]
From = Annotated[str | None, typer.Option("--from", help="Receipt time, ISO 8601; UTC where no zone is said.")]
To = Annotated[str | None, typer.Option("--to", help="To before this receipt time; default now.")]


@app.command()
def audit(signal: Signals = None, start: From = None, end: To = None, as_json: AsJson = False) -> None:
    """Prove from Kafka and the stores alone that nothing is missing or doubled; exit 1 where something is."""
    from rich.console import Console

    from pipeline import audit as room

    window = room.Window.parse(start, end)
    loaded = settings.load()
    with room.progress_bars() as progress:
        wanted = [name for name in room.SIGNALS if not signal or name in signal]
        report = room.audit(loaded, signals=wanted, window=window, progress=progress)
    if as_json:
        show(report.as_dict())
    else:
        report.show(Console())
    if not report.clean:
        raise typer.Exit(1)


class _Change(Protocol):
    def as_json(self) -> dict[str, object]: ...


def _show_plan(changes: Sequence[_Change], as_json: bool) -> None:
    if as_json:
        show([change.as_json() for change in changes])
    else:
        for change in changes:
            print(change)
    if changes:
        raise typer.Exit(1)


def _agreed(changes: Sequence[object], yes: bool) -> bool:
    for change in changes:
        print(change)
    if not changes:
        print("Nothing to do.")
        return False
    return yes or typer.confirm("Do this?", abort=True)


Names = Annotated[list[str] | None, typer.Argument(help="Processes; default all.")]


@local_app.command("up")
def local_up() -> None:
    """Start what does not run: servers, topics, migrations, gateway, writers. Print every address."""
    _stack().up()
    _show_status(as_json=False)


@local_app.command("down")
def local_down(
    wipe: Annotated[bool, typer.Option("--wipe", help="Remove all data too; what was fetched stays.")] = False,
) -> None:
    """Stop everything."""
    if wipe:
        _stack().wipe()
    else:
        _stack().down()


@local_app.command("status")
def local_status(as_json: AsJson = False) -> None:
    """Print every address and process; exit 1 where one does not run."""
    if not _show_status(as_json):
        raise typer.Exit(1)


@local_app.command("start")
def local_start(names: Names = None) -> None:
    """Start these processes, and wait until they are ready."""
    from pipeline.local import NAMES

    _stack().start(names or NAMES)


@local_app.command("stop")
def local_stop(names: Names = None) -> None:
    """Stop these processes."""
    from pipeline.local import NAMES

    _stack().stop(names or NAMES)


@local_app.command("restart")
def local_restart(names: Names = None) -> None:
    """Stop and start these processes."""
    from pipeline.local import NAMES

    _stack().restart(names or NAMES)


def _stack() -> "Stack":
    from pipeline.local import Stack

    return Stack(settings.load(), lambda line: print(line, file=sys.stderr, flush=True))


def _show_status(as_json: bool) -> bool:
    """Print the stack's status; return whether all of it runs."""
    from rich.console import Console
    from rich.table import Table

    status = _stack().status()
    rows = status.pop("processes")
    if as_json:
        show({**status, "processes": rows})
    else:
        for name, address in status.items():
            print(f"{name:<12} {address}")
        table = Table("process", "pid", "state", "since", "MB")
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        Console().print(table)
    return all(row["state"] == "running" for row in rows)


def main() -> None:
    try:
        app()
    except errors.Misconfigured as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(2)
    except errors.Unavailable as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
