"""What the README promises exists: commands, targets, metrics, settings, tables."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from prometheus_client import REGISTRY

from pipeline import cli
from pipeline.agents import LogRecord, drop
from pipeline.agents import load as agents
from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.gateway.tenants import Declared, load
from pipeline.record.framing import Origin
from pipeline.settings import ROOT, Settings
from pipeline.tables.model import declared, registered
from pipeline.tables.rows import Limits, Rows
from pipeline.telemetry import metrics  # noqa: F401 - fills the registry

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted({line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()})


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("pipeline ")])
def test_commands_exist_with_their_options(command: str) -> None:
    """Every `pipeline` command of the README is known, and so is each option."""
    words = command.split()
    verbs = [word for word in words[1:3] if re.fullmatch(r"[a-z][a-z_-]*", word)]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *verbs, "--help"], capture_output=True, text=True, check=False,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [(Misconfigured("m"), 2), (Unavailable("u"), 3), (Rejected("r"), 3), (KeyError("k"), 70)],
)
def test_a_bug_is_no_difference(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each failure ends a command with the code of the README; what nobody expected is shown with where it was."""

    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 70)
    [told] = re.findall(r"^Exit codes of every command: (.*?)\.$", README, re.MULTILINE | re.DOTALL)
    assert f" {code} " in told


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_targets_exist(command: str) -> None:
    """Every `make` target of the README is in the Makefile."""
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_metrics_exist() -> None:
    """Every metric of the README is in the catalogue."""
    known = {f"{m.name}{'_total' * (m.type == 'counter')}" for m in REGISTRY.collect()}
    named = set(re.findall(r"`(pipeline_\w+)`", README))
    assert named
    assert named <= known


def test_settings_example_is_valid() -> None:
    """The settings example of the README loads."""
    [text] = [text for kind, text in BLOCKS if kind == "toml" and "[gateway]" in text]
    assert Settings(**tomllib.loads(text)).gateway.workers == 2


def test_tenants_example_is_valid(tmp_path: pathlib.Path) -> None:
    """The tenants file of the README loads, with every key that it may have."""
    [text] = [text for kind, text in BLOCKS if kind == "toml" and "[tenants." in text]
    (tmp_path / "tenants.toml").write_text(text)
    assert load(tmp_path / "tenants.toml")["shop"].model_fields_set == set(Declared.model_fields)


def test_the_example_of_a_table_is_valid() -> None:
    """The table that the README declares can be registered, and the row that it posts fits."""
    [text] = [text for kind, text in BLOCKS if kind == "json"]
    table = registered(declared(json.loads(text)), who="ann", at="now")
    [row] = re.findall(r"-d '(.*)'", README)
    origin, limits = Origin("shop", "eu", 1_795_000_000 * 10**9), Limits()
    assert Rows(table).encode([json.loads(row)], origin, partitions=1, limits=limits).accepted == 1


def test_topics_and_tables_exist() -> None:
    """Every topic, table and view that the README names is declared."""
    declared = " ".join(path.read_text() for path in (ROOT / "migrations").rglob("*.sql"))
    for name in ("logs", "traces", "metrics", "metrics_1m", "metrics_1h", "metrics_1d", "metrics_histograms", "metrics_exponential_histograms",
                 "metrics_summaries", "histogram_quantile", "histogram_sum", "histogram_delta", "metric_series", "metrics_points",
                 "events"):  # fmt: skip
        assert name in README
        assert re.search(rf"(TABLE|VIEW|FUNCTION|AGGREGATE)( IF NOT EXISTS)? {name}\b", declared), name
    for topic in re.findall(r"\b(?:logs|metrics|traces)_raw(?:_dlq)?\b", README):
        assert (ROOT / "topics" / f"{topic}.yaml").is_file()


def test_paths_exist() -> None:
    """Every path of the code's walk exists."""
    for path in (
        "pipeline/gateway/http.py",
        "pipeline/delivery.py",
        "pipeline/clickhouse/__init__.py",
        "pipeline/gateway/intake.py",
        "pipeline/gateway/exports.py",
        "pipeline/gateway/outlet.py",
    ):
        assert pathlib.Path(ROOT, path).is_file()


def test_agent_example_works(tmp_path: pathlib.Path) -> None:
    """The agent of the README is one, with the settings of the README, and does what it says."""
    [code] = [text for kind, text in BLOCKS if kind == "python" and "@agent" in text]
    [said] = [text for kind, text in BLOCKS if kind == "toml" and "[routes]" in text]
    (tmp_path / "mask_emails.py").write_text(code)
    [example] = agents.load([tmp_path]).agents.values()
    own, _ = agents.settings_of(example, Settings(**tomllib.loads(said)))
    assert (own.workers, own.record_within_s) == (2, 5.0)
    assert example(LogRecord(body="to ann@example.com", severity_number=9)).body == "to ***"
    assert example(LogRecord(severity_number=5)) == drop("debug")
