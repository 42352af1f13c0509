"""`pipeline schemas`."""

import typer

from pipeline.cli.common import AsJson, Yes, agreed, show_json
from pipeline.errors import Misconfigured

app = typer.Typer(no_args_is_help=True, help="Avro schemas of the records: schemas/*.avsc and their lock.")


@app.command("check")
def check(as_json: AsJson = False) -> None:
    """Print every schema; exit 2 with all problems where one may not stand beside the others."""
    from pipeline import schemas

    report = schemas.check()
    problems = report.problems + [
        f"{name} is not locked: nobody may write it yet. Publish it with `pipeline schemas lock`."
        for name in report.unlocked
    ]
    if as_json:
        rows = [
            {"name": name, "fingerprint": fingerprint, "locked": name not in report.unlocked}
            for name, fingerprint in report.fingerprints.items()
        ]
        show_json({"schemas": rows, "problems": problems})
        raise typer.Exit(2 if problems else 0)
    if problems:
        raise Misconfigured(problems)
    for name, fingerprint in report.fingerprints.items():
        print(f"{name}: {fingerprint}")


@app.command("lock")
def lock(yes: Yes = False) -> None:
    """Check, print what is not locked yet, ask, and lock it: from then on it never changes."""
    from pipeline import schemas

    report = schemas.check()
    if report.problems:
        raise Misconfigured(report.problems)
    if agreed([f"lock {name}: {report.fingerprints[name]}" for name in report.unlocked], yes):
        schemas.lock(report)
