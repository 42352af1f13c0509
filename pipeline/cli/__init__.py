"""The command `pipeline`: parse, call one thing, exit code.

Exit codes: 0 fine; 1 a difference was found; 2 misconfigured (settings, files, command line); 3 the world is away.
"""

import sys

import typer

from pipeline import errors
from pipeline.cli import agents, audit, dlq, local, maintain, migrate, processes, regions, registry, schemas, topics

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
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
