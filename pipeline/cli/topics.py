"""`pipeline topics`."""

import pathlib
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_json, show_plan
from pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from pipeline.topics import Change

app = typer.Typer(no_args_is_help=True, help="Topics as code: topics/*.yaml against the cluster.")
GROWTH = "A topic that grows puts a service's later records into other partitions: their order is not kept across it."
Name = Annotated[str, typer.Argument(help="The topic.")]
Last = Annotated[str, typer.Option(help="Received in this time: 90s, 5m, 2h, 1d.")]


@app.command()
def check() -> None:
    """Read the files alone, with the rules of the environment; print how many topics they declare."""
    from pipeline import topics

    loaded = settings.load()
    declared = topics.load(loaded.topics_directory, environment=loaded.environment)
    print(f"{len(declared)} topics are declared well for {loaded.environment}.")


@app.command()
def plan(
    out: Annotated[pathlib.Path | None, typer.Option("--out", "-o", help="Write the plan for `apply FILE`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what `apply` would change in the cluster; exit 1 where that is something."""
    from pipeline import topics

    loaded = settings.load()
    cluster = topics.cluster_of(loaded)
    changes = topics.plan(topics.load(loaded.topics_directory, environment=loaded.environment), cluster)
    if out:
        kept = topics.Plan(cluster_id=cluster.id(), changes=tuple(changes))
        out.write_text(kept.model_dump_json(indent=2) + "\n")
    _warn(changes)
    show_plan(changes, as_json)


@app.command()
def apply(
    file: Annotated[pathlib.Path | None, typer.Argument(help="What `plan -o` wrote; default: plan now.")] = None,
    yes: Yes = False,
) -> None:
    """Print the plan, ask, and carry out the plan that was printed; nothing where the cluster has moved since."""
    from pipeline import topics

    loaded = settings.load()
    cluster = topics.cluster_of(loaded)
    if file is None:
        changes = topics.plan(topics.load(loaded.topics_directory, environment=loaded.environment), cluster)
    else:
        try:
            kept = topics.Plan.parse(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"{file} cannot be read: {error}.") from None
        if kept.cluster_id != cluster.id():
            raise Misconfigured(f"{file} is a plan for cluster {kept.cluster_id}, this one is {cluster.id()}.")
        changes = list(kept.changes)
    _warn(changes)
    if agreed(changes, yes):
        topics.apply(changes, cluster)


@app.command()
def replicas() -> None:
    """Print the file by which kafka-reassign-partitions makes replicas as many as declared, and how; exit 1 where that
    is something."""
    from pipeline import topics
    from pipeline.topics.replicas import HOW, reassignment

    loaded = settings.load()
    wanted = reassignment(
        topics.load(loaded.topics_directory, environment=loaded.environment), topics.cluster_of(loaded)
    )
    show_json(wanted)
    if wanted["partitions"]:
        typer.echo(HOW.format(servers=loaded.kafka.bootstrap_servers), err=True)
        raise typer.Exit(1)


@app.command()
def describe(
    names: Annotated[list[str] | None, typer.Argument(help="Default all.")] = None, as_json: AsJson = False
) -> None:
    """Print what the cluster has: partitions, replicas, messages, and where the consumers stand."""
    from pipeline import topics
    from pipeline.topics import inventory

    loaded = settings.load()
    found = inventory.describe(
        topics.load(loaded.topics_directory, environment=loaded.environment), names or [], loaded.kafka
    )
    if as_json:
        show_json([each.as_json() for each in found])
    else:
        for each in found:
            print(each)


@app.command("import")
def import_(
    name: Name,
    signal: Annotated[Literal["logs", "metrics", "traces", "events"], typer.Option(help="What its records are.")],
    owner: Annotated[str, typer.Option(help="The team to ask.")],
    description: Annotated[str, typer.Option(help="What it is for, in a sentence.")],
) -> None:
    """Write topics/NAME.yaml for a topic that the cluster has and no file declares."""
    from pipeline.topics import inventory

    said = {"signal": signal, "owner": owner, "description": description}
    loaded = settings.load()
    print(f"{inventory.import_topic(name, said, loaded.kafka, loaded.topics_directory)} is written.")


@app.command()
def delete(name: Name, yes: Yes = False) -> None:
    """Delete a topic that no file declares, with all its messages; the only command that does."""
    from pipeline import topics
    from pipeline.topics import inventory

    loaded = settings.load()
    declared = topics.load(loaded.topics_directory, environment=loaded.environment)
    if name in {topic.name for topic in declared}:
        raise Misconfigured(f"topics/{name}.yaml declares it: remove the file first, or the next apply makes it anew.")
    cluster = topics.cluster_of(loaded)
    if agreed([f"delete {each}" for each in inventory.describe(declared, [name], loaded.kafka)], yes):
        cluster.delete(name)


@app.command()
def tail(  # noqa: PLR0913, PLR0917 - options
    topic: Name,
    last: Last = "5m",
    start: Annotated[str | None, typer.Option("--from", help="Receipt time, ISO 8601; instead of --last.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="To before this receipt time; default now.")] = None,
    service: Annotated[str | None, typer.Option(help="Only of this service.")] = None,
    trace: Annotated[str | None, typer.Option(help="Only of this trace id.")] = None,
    severity: Annotated[str | None, typer.Option(help="Logs of this severity and above, such as warn.")] = None,
    limit: Annotated[int, typer.Option("-n", min=1, max=100_000, help="At most so many, the latest.")] = 1000,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print the records of a topic, decoded, a line each."""
    import json

    from pipeline.record.times import parse_ns
    from pipeline.topics import tail as room

    wanted = room.Filter.parse(service, trace, severity)
    from_ms = parse_ns(start) // 10**6 if start else room.ago_ms(last, time.time_ns() // 10**6)
    to_ms = parse_ns(end) // 10**6 if end else None
    reading = room.Tail(settings.load().kafka, topic, wanted)

    def show(found: room.Found) -> None:
        print(json.dumps(found.as_json(), ensure_ascii=False) if as_json else found, flush=follow)

    for found in reading.latest(from_ms, to_ms, limit):
        show(found)
    if follow:
        for found in reading.following():
            show(found)


def _warn(changes: "list[Change]") -> None:
    if any(change.action == "grow" for change in changes):
        typer.echo(GROWTH, err=True)
