"""`pipeline replay`."""

import itertools
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import digits, settings
from pipeline.cli.common import AsJson, Yes, agreed, asked, progress_bars, show_json
from pipeline.errors import Misconfigured

if TYPE_CHECKING:
    from pipeline.replay.folder import Folder

app = typer.Typer(
    no_args_is_help=True,
    help="A slice of Kafka's history into a sandbox, and what differs.",
)
Name = Annotated[str, typer.Argument(help="The sandbox's name.")]
From = Annotated[str, typer.Option("--from", help="Receipt time, ISO 8601; UTC where no zone is said.")]
To = Annotated[str, typer.Option("--to", help="To before this receipt time; a time of day is of the day of --from.")]
Topics = Annotated[str, typer.Option("--topics", help="Separated by commas; mirrors of other regions come with them.")]
Condition = Annotated[list[str] | None, typer.Option("--where", help="As service=checkout; may be repeated.")]
Rate = Annotated[str | None, typer.Option("--rate", help="Records a second at most, as 50000/s.")]


@app.command("plan")
def plan(  # noqa: PLR0913, PLR0917 - as many as the command has
    topics: Topics, start: From, end: To, where: Condition = None,
    name: Annotated[str | None, typer.Option("--name", help="Default replay-1, replay-2 …")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Read what is there, and keep the plan; nothing is copied or made yet."""
    import datetime

    from pipeline.replay import plan as planning
    from pipeline.replay.folder import Folder
    from pipeline.replay.names import Sandbox
    from pipeline.replay.run import measured_rate
    from pipeline.replay.where import Where

    live = settings.load()
    names = (f"replay-{n}" for n in itertools.count(1))
    name = name or next(each for each in names if not Sandbox.called(each).folder(live).exists())
    Sandbox.called(name)
    between = planning.window(start, end, datetime.datetime.now(datetime.UTC))
    rate = measured_rate(live) or planning.ASSUMED_RECORDS_PER_S
    wanted = [topic for topic in (part.strip() for part in topics.split(",")) if topic]
    made = planning.make(live, name, topics=wanted, between=between, where=Where.parse(where or []), rate=rate)
    Folder.made(made, live)
    if as_json:
        show_json(made.as_json())
    else:
        print("\n".join(made.lines()))


@app.command("run")
def run(
    name: Name,
    settings_file: Annotated[pathlib.Path | None, typer.Option("--settings", help="TOML, over live's.")] = None,
    agents: Annotated[pathlib.Path | None, typer.Option(help="A file or folder of agents, not installed.")] = None,
    against: Annotated[str | None, typer.Option(help="Other code: git:<revision>.")] = None,
    rate: Rate = None,
) -> None:
    """Make the sandbox, copy the slice, and store it there; Ctrl-C stops, running again goes on."""
    from pipeline.replay.folder import Folder, Way

    live = settings.load()
    folder = Folder.of(name, live)
    before = folder.way
    if before and settings_file is None and agents is None and against is None:
        way = before.model_copy(update={"records_per_s": _rate(rate, before.records_per_s)})
    else:
        way = Way(
            settings=settings_file and settings_file.resolve(), agents=agents and agents.resolve(), against=against,
            records_per_s=_rate(rate, live.replay.max_records_per_s),
        )  # fmt: skip
    _run(folder, live, way)


@app.command("compare")
def compare(
    name: Name,
    other: Annotated[str, typer.Option("--with", help="`live`, or another sandbox of the same slice.")] = "live",
    html: Annotated[pathlib.Path | None, typer.Option(help="Write the report there: one file, no network.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the verdict; exit 1 where the two differ or a record is unaccounted for."""
    from pipeline.replay import compare as room
    from pipeline.replay.folder import Folder
    from pipeline.replay.parts import LIVE
    from pipeline.replay.report import page

    live = settings.load()
    found = room.compare(Folder.of(name, live), None if other == LIVE else Folder.of(other, live), live)
    if html is not None:
        html.write_text(page(found.document))
    if as_json:
        show_json(found.document)
    else:
        print("\n".join(found.lines()))
        if html is not None:
            print(f"report: {html}")
    if not found.equal:
        raise typer.Exit(1)


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """Print every sandbox."""
    from pipeline.replay.folder import every

    rows = [_row(one) for one in every(settings.load())]
    if as_json:
        show_json(rows)
        return
    for row in rows:
        print("{name:<20} {state:<8} {way:<30} {records:>12,} records  expires {expires}".format(**row))


@app.command("status")
def status(name: Name, as_json: AsJson = False) -> None:
    """Print how far one has come."""
    from pipeline.replay.folder import Folder

    folder = Folder.of(name, settings.load())
    if as_json:
        show_json(_row(folder))
        return
    for key, value in _row(folder).items():
        print(f"{key:<16} {value}")
    print("\n".join(folder.plan.lines()))


@app.command("pause")
def pause(name: Name) -> None:
    """Let the running replay hold after the batch that it is at."""
    from pipeline.replay.folder import Folder

    folder = Folder.of(name, settings.load())
    if not folder.running:
        raise Misconfigured(f"{name} does not run: there is nothing to pause.")
    folder.pause()
    print(f"{name} holds; `pipeline replay resume {name}` lets it go on.")


@app.command("resume")
def resume(name: Name) -> None:
    """Let a paused replay go on; one that was stopped goes on in this terminal."""
    from pipeline.replay.folder import Folder

    live = settings.load()
    folder = Folder.of(name, live)
    if folder.running:
        folder.unpause()
        print(f"{name} goes on.")
        return
    way = folder.way
    if way is None:
        raise Misconfigured(f"{name} was never run: `pipeline replay run {name}`.")
    _run(folder, live, way)


@app.command("drop")
def drop(name: Name, yes: Yes = False) -> None:
    """Print what is removed, ask, and remove it: topics, groups, principal, schema, role, database, files."""
    from pipeline.replay import drop as dropping
    from pipeline.replay.folder import Folder

    live = settings.load()
    folder = Folder.of(name, live)
    change = dropping.Drop(folder, live)
    if agreed([change], yes):
        change.carry_out()


@app.command("into-live")
def into_live(
    name: Name,
    rate: Rate = None,
    approve: Annotated[str | None, typer.Option(help="The name once more, instead of being asked for it.")] = None,
) -> None:
    """Repair live's stores from Kafka: print the plan, let its name be typed, and write what they lack of it."""
    from pipeline.replay import into_live as backfill
    from pipeline.replay.folder import Folder

    live = settings.load()
    folder = Folder.of(name, live)
    plan = folder.plan
    print("\n".join(backfill.lines(plan, live)))
    with asked("--approve"):
        typed = approve or typer.prompt(f"This writes to live. Type {name} to do it", default="", show_default=False)
    if typed != name:
        raise Misconfigured(f"{typed!r} is not {name}: nothing was written.")
    done = 0

    with folder.locked(), progress_bars() as tell:

        def progress(records: int) -> None:
            nonlocal done
            done += records
            tell("written", done, plan.records)

        backfill.fill(plan, live, _rate(rate, live.replay.max_records_per_s), progress)
    print(f"{name}: {done:,} records were offered to live's stores.")


def _run(folder: "Folder", live: settings.Settings, way: Any) -> None:
    from pipeline.replay.run import StoppedError
    from pipeline.replay.run import run as carry_out

    with progress_bars() as tell:
        try:
            carry_out(folder, live, way, tell)
        except StoppedError as stopped:
            raise Misconfigured(str(stopped)) from None
        except KeyboardInterrupt:
            print(f"stopped; `pipeline replay resume {folder.plan.name}` goes on.", file=sys.stderr)
            raise
    print(f"{folder.plan.name} is done: `pipeline replay compare {folder.plan.name} --with live` says what differs.")


def _row(folder: "Folder") -> dict[str, Any]:
    plan, state = folder.plan, folder.state
    running = folder.running
    words = "paused" if running and folder.paused else "running" if running else state["state"]
    return {
        "name": plan.name,
        "state": words,
        "way": str(folder.way or "not run yet"),
        "records": plan.records,
        "copied_records": state.get("copied_records", 0),
        "seconds": state.get("seconds"),
        "created": plan.created.isoformat(timespec="seconds"),
        "expires": plan.expires.isoformat(timespec="seconds"),
        "folder": str(folder.path),
    }


def _rate(said: str | None, default: int) -> int:
    if said is None:
        return default
    rate = digits.number(said.removesuffix("/s").replace("_", ""), 9, 0)
    if not rate:
        raise Misconfigured(f"--rate: {said[:40]!r} is no rate: write records a second, as 50000/s.")
    return rate
