"""The command `pipeline`: parse, call one thing, exit code.

Exit codes: 0 fine; 1 a difference was found; 2 misconfigured (settings, files, command line); 3 the world is away;
70 a bug: please report it with its traceback; 130 stopped by Ctrl-C, or by a question that nobody answered with yes.
"""

import os
import sys
import traceback
from typing import Annotated

import typer

from pipeline import __version__, errors, native, settings
from pipeline.cli import (
    agents,
    audit,
    dlq,
    local,
    maintain,
    migrate,
    processes,
    regions,
    registry,
    replay,
    schemas,
    topics,
)
from pipeline.cli.common import files_named

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    """Print the version, and what does the work."""
    if wanted:
        native.choose(settings.load().implementation)
        print(f"pipeline {__version__}, hot path: {native.name()}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_version, help="Print it, and what does the work.")
]


@app.callback(help=__doc__)
def _root(version: Version = False) -> None:
    pass


app.add_typer(processes.app)
app.add_typer(audit.app)
app.add_typer(local.app, name="local")
app.add_typer(agents.app, name="agents")
app.add_typer(dlq.app, name="dlq")
app.add_typer(processes.tenants_app, name="tenants")
app.add_typer(topics.app, name="topics")
app.add_typer(schemas.app, name="schemas")
app.add_typer(registry.app, name="registry")
app.add_typer(migrate.app, name="migrate")
app.add_typer(maintain.app, name="maintain")
app.add_typer(regions.app, name="regions")
app.add_typer(replay.app, name="replay")


def main() -> None:
    try:
        with files_named():
            app()
    except errors.Misconfigured as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(2)
    except (errors.Unavailable, errors.Rejected) as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # Python's own code for it is 1, which says that a difference was found
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)
