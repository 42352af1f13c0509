"""`pipeline gateway`, `tenants`, and the writers: what runs until it is told to stop."""

import os
import sys
from typing import Annotated

import structlog
import typer

from pipeline import native, settings

app = typer.Typer()
tenants_app = typer.Typer(no_args_is_help=True, help="Who may send to the gateway.")
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
    """Write metric points, and errors and events among logs, from Kafka into PostgreSQL, each exactly once."""
    _run_workers("pg_writer", workers)


@app.command("ch_writer")
def ch_writer(workers: Workers = None) -> None:
    """Write logs, spans and metric points from Kafka into ClickHouse, each visible once."""
    _run_workers("ch_writer", workers)


@app.command("query")
def query() -> None:
    """Answer questions over the stores of several regions by HTTP: logs, a trace, a metric over time."""
    from pipeline.query.main import run
    from pipeline.telemetry import log

    log.configure("query")
    run(settings.load())


@app.command("otlp_writer")
def otlp_writer(workers: Workers = None) -> None:
    """Send logs, spans and metric points from Kafka on to an OTLP back end; needs `otlp_writer.endpoint`."""
    _run_workers("otlp_writer", workers)


def _run_workers(process: str, workers: int | None) -> None:
    """Be the one process, or the supervisor of several. Rooms are imported here: a command loads only its own."""
    from pipeline import workers as processes
    from pipeline.telemetry import log

    if workers is not None:
        os.environ[f"{settings.PREFIX}{process.upper()}__WORKERS"] = str(workers)
    loaded = settings.load()
    number = processes.number()
    log.configure(process)
    native.choose(loaded.implementation)
    structlog.get_logger().info("hot path", implementation=native.name())
    if number is None and getattr(loaded, process).workers > 1:
        sys.exit(processes.supervise([processes.Group(process, [process], getattr(loaded, process).workers)]))
    if process == "gateway":
        from pipeline.gateway.main import run

        run(loaded)
    else:
        from pipeline.agents.worker import run_writer

        run_writer(process, loaded, number or 0)
