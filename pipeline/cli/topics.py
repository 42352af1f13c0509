"""`pipeline topics`."""

import typer

from pipeline import settings
from pipeline.cli.common import AsJson, Yes, agreed, show_plan

app = typer.Typer(no_args_is_help=True, help="Topics as code: topics/*.yaml against the cluster.")


@app.command("plan")
def plan(as_json: AsJson = False) -> None:
    """Print what `apply` would change in the cluster; exit 1 where that is something."""
    from pipeline import topics
    from pipeline.kafka.admin import Cluster

    show_plan(topics.plan(topics.load(), Cluster(settings.load().kafka)), as_json)


@app.command("apply")
def apply(yes: Yes = False) -> None:
    """Print the plan, ask, and carry out the plan that was printed."""
    from pipeline import topics
    from pipeline.kafka.admin import Cluster

    cluster = Cluster(settings.load().kafka)
    changes = topics.plan(topics.load(), cluster)
    if agreed(changes, yes):
        topics.apply(changes, cluster)
