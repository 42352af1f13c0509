"""A release migrates the stores before its writers are started: those of before run on until then."""

import os
import pathlib
import subprocess
import tarfile
import time

import pytest

from pipeline import migrations, otlp, topics
from pipeline.audit import audit
from pipeline.settings import ROOT, KafkaSettings, Settings, as_environment
from tests.agents.conftest import BOTH
from tests.agents.process import Process, send, until
from tests.audit.conftest import remove_topics
from tests.conftest import free_ports
from tests.contract.test_stores import messages, new_service
from tests.drills.exporters import MAKE

RECORDS = 20  # of each signal


def before_the_newest_migration(into: pathlib.Path) -> pathlib.Path:
    """The code of the commit before the one that brought it; without the history nobody has it."""
    git = ["git", "-C", str(ROOT)]
    newest = subprocess.run(
        [*git, "log", "--diff-filter=A", "--format=%H", "-1", "--", "migrations"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    archive = into / "before.tar"
    revision = f"{newest.stdout.strip()}^"
    done = subprocess.run([*git, "archive", "-o", str(archive), revision], capture_output=True, text=True, check=False)
    if newest.returncode or done.returncode:
        said = f"The code of before the newest migration is missing ({newest.stderr or done.stderr}): clone all of it."
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    with tarfile.open(archive) as held:
        held.extraction_filter = getattr(tarfile, "data_filter", None)  # Python has it from 3.11.4 on
        held.extractall(into / "before")
    return into / "before"


@pytest.mark.timeout(300)
def test_writers_of_before_the_newest_migration_run_after_it(
    kafka: str, settings: Settings, tmp_path: pathlib.Path
) -> None:
    """They store every signal in the schema that the newest migrations make, and the audit of today finds it whole."""
    code = before_the_newest_migration(tmp_path)
    remove_topics(kafka)
    world = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=kafka)})
    topics.apply_all(world)
    migrations.up_all(world)
    defaults = as_environment(Settings())  # among them settings that they do not know
    said = {key: value for key, value in as_environment(world).items() if defaults.get(key) != value}
    writers = []
    try:
        for name, port in zip(BOTH, free_ports(len(BOTH)), strict=True):
            health = {f"PIPELINE_{name.upper()}__HEALTH_PORT": str(port)}
            writers.append(Process(name, world, code=code, environment={**said, **health}))
            writers[-1].start()
        for signal, make in MAKE.items():
            body, origin = make(new_service(), range(RECORDS)), otlp.Origin("acme", "eu", time.time_ns())
            send(world, *messages(signal, otlp.encode(signal, body, origin, partitions=1)))
        until(lambda: _whole(world), "not everything is stored", 180.0)
        for each in writers:
            assert each.stop()[0] == 0
    finally:
        for each in writers:
            each.close()
        remove_topics(kafka)


def _whole(world: Settings) -> bool:
    report = audit(world)
    stores = [findings for name in MAKE for findings in report.signals[name].stores.values()]
    return report.clean and all(each.expected for each in stores) and not any(each.dead_lettered for each in stores)
