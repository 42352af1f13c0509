"""`pipeline regions`."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, ask, show_json
from pipeline.settings import ROOT

if TYPE_CHECKING:
    from pipeline.regions.failover import Move
    from pipeline.regions.status import LinkStatus

app = typer.Typer(no_args_is_help=True, help="Regions as code: topics/topology.yaml, and MirrorMaker 2 between them.")


@app.command()
def check() -> None:
    """Read the topology and say every reason why it would not do what it seems to say."""
    from pipeline import regions

    topology = regions.load(settings.load())
    print(f"{len(topology.regions)} regions and {len(topology.links)} links are declared well.")


@app.command()
def render(
    out: Annotated[pathlib.Path, typer.Option("--out", "-o", help="The folder to write into.")] = ROOT
    / "deploy"
    / "mirrormaker2",
    dry: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 where a file would change.")] = False,
) -> None:
    """Write MirrorMaker 2's configuration for each target, as properties and for Kubernetes; print what changed."""
    from pipeline import regions

    loaded = settings.load()
    files = regions.render(regions.load(loaded), loaded)
    if dry:
        stale = [name for name, text in files.items() if not (out / name).is_file() or (out / name).read_text() != text]
        for name in stale:
            print(f"{out / name} is not what the topology says: run `pipeline regions render`.")
        raise typer.Exit(1 if stale else 0)
    for path in regions.write(files, out):
        print(path)


@app.command()
def plan(as_json: AsJson = False) -> None:
    """Print which mirrored topics `apply` would make or change, by region; exit 1 where that is something."""
    from pipeline import regions

    loaded = settings.load()
    changes = regions.plan(regions.load(loaded), loaded)
    if as_json:
        show_json({target: [step.as_json() for step in steps] for target, steps in changes.items()})
    else:
        for target, steps in changes.items():
            for step in steps:
                print(f"{target}: {step}")
    if any(changes.values()):
        raise typer.Exit(1)


@app.command()
def apply(yes: Yes = False) -> None:
    """Print the plan, ask, and make the mirrored topics; do this before mirroring starts."""
    from pipeline import regions

    loaded = settings.load()
    topology = regions.load(loaded)
    changes = regions.plan(topology, loaded)
    if agreed([f"{target}: {step}" for target, steps in changes.items() for step in steps], yes):
        regions.apply(changes, topology)


@app.command()
def status(
    as_json: AsJson = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Again and again; also note at the targets how far sources are."),
    ] = False,
    every_s: Annotated[float, typer.Option(min=0.5, help="Between two looks of --watch.")] = 5.0,
    port: Annotated[int | None, typer.Option(help="With --watch: serve /metrics on loopback.")] = None,
) -> None:
    """Print where every link stands: latency, lag, checkpoints, throughput; exit 1 where one is broken."""
    import time

    from prometheus_client import start_http_server

    from pipeline import regions
    from pipeline.regions import status as room

    loaded = settings.load()
    topology = regions.load(loaded)
    if watch and port:
        start_http_server(port, addr="127.0.0.1")
    while True:
        found = room.look(topology, loaded)
        _show_links(found, as_json)
        if not watch:
            raise typer.Exit(1 if any(link.broken for link in found) else 0)
        room.note(topology, loaded)
        room.show_metrics(found, topology)
        time.sleep(every_s)


def _show_links(found: "list[LinkStatus]", as_json: bool) -> None:
    if as_json:
        show_json([link.as_json() for link in found])
        return
    for link in found:
        age = "never" if link.heartbeat_age_s is None else f"{link.heartbeat_age_s:.1f} s ago"
        print(f"{link.source} -> {link.target}: {link.broken or 'works'}; heartbeat {age}")
        for topic in link.topics:
            lag = "unknown" if topic.lag_messages is None else f"{topic.lag_messages} messages, {topic.lag_s:.1f} s"
            newest = "none" if topic.newest_age_s is None else f"{topic.newest_age_s:.1f} s old"
            print(f"  {topic.topic:<14} behind {lag}; newest {newest}; {topic.per_s:.1f} messages/s")
        for group in link.groups:
            print(f"  {group.group:<14} {group.partitions} partitions translated, last at {group.last}")


From = Annotated[str, typer.Option("--from", help="The region.")]
To = Annotated[str, typer.Option("--to", help="The region.")]
Within = Annotated[float, typer.Option(min=1, help="How long to wait for what takes time.")]


@app.command()
def failover(  # noqa: PLR0913, PLR0917 - options
    source: From,
    target: To,
    since: Annotated[str | None, typer.Option(help="Read from this receipt time again, ISO 8601.")] = None,
    unknown_loss: Annotated[bool, typer.Option("--unknown-loss", help="Go on though nobody counted the loss.")] = False,
    within_s: Within = 600.0,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Print every step by which --to stores what --from had, and what did not come over; ask; do them."""
    from pipeline import regions
    from pipeline.record.times import parse_ns
    from pipeline.regions.failover import Failover

    loaded = settings.load()
    since_ms = parse_ns(since) // 10**6 if since else None
    pair = source, target
    _move(
        Failover(regions.load(loaded), loaded, pair, since_ms=since_ms, unknown_loss=unknown_loss),
        within_s,
        yes,
        as_json,
    )


@app.command()
def failback(source: From, target: To, within_s: Within = 600.0, yes: Yes = False, as_json: AsJson = False) -> None:
    """Print every step by which --to, which is back, takes its own records again; ask; do them."""
    from pipeline import regions
    from pipeline.regions.failover import Failback

    loaded = settings.load()
    _move(Failback(regions.load(loaded), loaded, (target, source)), within_s, yes, as_json)


def _move(move: "Move", within_s: float, yes: bool, as_json: bool) -> None:
    from pipeline.regions.failover import carry_out

    course = move.look()
    if as_json:
        show_json(course.as_json())
        raise typer.Exit(1 if any(step.state != "done" for step in course.steps) else 0)
    for each in (*course.lost, *course.steps):
        print(each)
    if any(step.state != "done" for step in course.steps):
        ask(yes or any(step.state == "refused" for step in course.steps))
        carry_out(move, print, within_s)
    print("All steps are done.")
