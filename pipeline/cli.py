"""The command `pipeline`: parse, call one thing, exit code.

Exit codes: 0 fine; 1 a difference was found; 2 misconfigured (settings, files, command line); 3 the world is away.
"""

import json
import sys

import typer

from pipeline import errors, settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
local_app = typer.Typer(no_args_is_help=True, help="The whole stack on this machine, for demos, tests and hands-on work.")
topics_app = typer.Typer(no_args_is_help=True, help="Topics as code: topics/*.yaml against the cluster.")
migrate_app = typer.Typer(no_args_is_help=True, help="Migrations of PostgreSQL and ClickHouse.")
app.add_typer(local_app, name="local")
app.add_typer(topics_app, name="topics")
app.add_typer(migrate_app, name="migrate")


def show(value: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    print()


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
