"""What the processes of a sandbox are told."""

import pathlib

from pipeline.replay.changed import environment
from pipeline.settings import PREFIX, PostgresSettings, ReplaySettings, Settings


def test_a_sandbox_is_told_only_what_is_not_as_ever(tmp_path: pathlib.Path) -> None:
    """So `--against` runs revisions that do not know every setting of today."""
    own = Settings.model_construct(postgres=PostgresSettings(dsn="host=elsewhere"), replay=ReplaySettings(nice=3))
    said = {key: value for key, value in environment(own, tmp_path).items() if key.startswith(PREFIX)}
    assert said == {f"{PREFIX}POSTGRES__DSN": "host=elsewhere", f"{PREFIX}REPLAY__NICE": "3"}
