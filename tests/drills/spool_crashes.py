"""The spool's own crash test, with many more examples."""

import os
import subprocess
import sys

from pipeline.settings import ROOT
from tests.drills.context import Context, Failed

TEST = "tests/spool/test_crashes.py"
EXAMPLES = 5_000


def drill(context: Context) -> str:
    """Run it with EXAMPLES examples; its short form is that test's own default."""
    if not (ROOT / TEST).is_file():
        raise Failed(f"{TEST} is not there.")
    env = {**os.environ} if context.short else {**os.environ, "DRILL_EXAMPLES": str(EXAMPLES)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", TEST]
    log = context.home / "pytest.log"
    with log.open("w") as output:
        pytest = subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=ROOT)
        try:
            code = pytest.wait()
        except BaseException:
            pytest.terminate()
            pytest.wait(30)
            raise
    last = log.read_text().strip().splitlines()[-1]
    if code:
        raise Failed(f"{TEST}: {last}; see {log.relative_to(ROOT) if log.is_relative_to(ROOT) else log}")
    return f"{TEST}: {last}"
