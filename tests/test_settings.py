"""Settings: every problem at once, the same in another process, and no secret in any sentence."""

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import settings
from pipeline.errors import Misconfigured

SECRET = "sesame"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(settings.PREFIX):
            monkeypatch.delenv(variable)


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        settings.load()
    return caught.value.problems


def file(directory: pathlib.Path, text: str) -> str:
    path = directory / "settings.toml"
    path.write_text(text)
    return str(path)


BAD_TOML = '[kafka]\nservers = "a"\n[gateway]\nhttp_port = 0\n[nowhere]\nx = 1\n'
BAD_VARIABLES = {"PIPELINE_NOTHING": "1", "PIPELINE_GATEWAY__GRPC": "1", "PIPELINE_REGION": "has.dot"}
NAMED = ["PIPELINE_NOTHING", "gateway.grpc:", "region:", "kafka.servers:", "gateway.http_port:", "nowhere:"]


def test_every_problem_is_listed_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Unknown keys and bad values, of the environment and of the file, one sentence each."""
    found = problems(monkeypatch, PIPELINE_SETTINGS=file(tmp_path, BAD_TOML), **BAD_VARIABLES)
    assert len(found) == len(NAMED)
    for name in NAMED:
        assert len([problem for problem in found if name in problem]) == 1, name


def test_a_process_that_is_misconfigured_ends_with_2(tmp_path: pathlib.Path) -> None:
    """`python -m pipeline gateway` prints every problem and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "gateway"],
        env=os.environ | BAD_VARIABLES | {"PIPELINE_SETTINGS": file(tmp_path, BAD_TOML)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == len(NAMED)
    assert all(name in done.stderr for name in NAMED)


@pytest.mark.parametrize(
    ("variable", "example"),
    [
        ("PIPELINE_MIRRORED_REGIONS", '["a", "b"]'),
        ("PIPELINE_ROUTES__LOGS", '["a", "b"]'),
        ("PIPELINE_KAFKA", "PIPELINE_KAFKA__KEY"),
        ("PIPELINE_AGENTS", '{"key": '),
        ("PIPELINE_GATEWAY__RESOURCE_ATTRIBUTES", '{"key": '),
    ],
)
@pytest.mark.parametrize("value", ["x", '{"half": ', "5", '"text"'])
def test_a_variable_that_is_not_the_json_it_must_be_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, variable: str, example: str, value: str
) -> None:
    """With an example, beside every other problem, and never as the file's fault."""
    own = file(tmp_path, '[spool]\nmax_bytes = 0\n[kafka]\nbootstrap_servers = "a:1"\n')
    found = problems(monkeypatch, **{variable: value}, PIPELINE_TENANT="a.b", PIPELINE_SETTINGS=own)
    [said] = [problem for problem in found if variable in problem]
    assert said.startswith(f"environment: {variable} must be JSON: ")
    assert example in said
    assert sorted(problem.split()[1] for problem in found if problem != said) == ["spool.max_bytes:", "tenant:"]


@pytest.mark.parametrize(
    "variable",
    [
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS__DEEPER",
        "PIPELINE_REGION__DEEPER",
    ],
)
def test_a_key_below_a_value_is_a_problem(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A variable that names nothing is never passed over."""
    assert len(problems(monkeypatch, **{variable: "x"})) == 1


@pytest.mark.parametrize(("text", "says"), [("[kafka\n", "settings.toml"), ("region = 3\n", "region")])
def test_a_file_that_does_not_read_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, text: str, says: str
) -> None:
    """TOML with a mistake, and a value of another type."""
    [problem] = problems(monkeypatch, PIPELINE_SETTINGS=file(tmp_path, text))
    assert says in problem


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """With the variable that names it."""
    [problem] = problems(monkeypatch, PIPELINE_SETTINGS=str(tmp_path / "none.toml"))
    assert "PIPELINE_SETTINGS" in problem
    assert "none.toml" in problem


def test_the_environment_is_stronger_than_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Key by key: what only the file sets stays, what neither sets has its default."""
    text = "[gateway]\nhttp_port = 1000\ngrpc_port = 1001\n[pg_writer]\nworkers = 3\n"
    monkeypatch.setenv("PIPELINE_SETTINGS", file(tmp_path, text))
    monkeypatch.setenv("PIPELINE_GATEWAY__GRPC_PORT", "2000")
    loaded = settings.load()
    assert (loaded.gateway.http_port, loaded.gateway.grpc_port, loaded.gateway.host) == (1000, 2000, "127.0.0.1")
    assert (loaded.pg_writer.workers, loaded.pg_writer.health_port) == (3, 9110)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    region=st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True),
    servers=words, dsn=words, password=words, port=st.integers(1, 65535),
    within_s=st.floats(min_value=0, max_value=2_000_000, exclude_min=True), home=words.filter(bool),
)  # fmt: skip
def test_another_process_gets_the_same_settings(
    *, region: str, servers: str, dsn: str, password: str, port: int, within_s: float, home: str
) -> None:
    """as_environment and load are each other's inverse, secrets and odd characters included."""
    own = settings.Settings(
        region=region,
        kafka=settings.KafkaSettings(bootstrap_servers=servers),
        postgres=settings.PostgresSettings(dsn=dsn),
        clickhouse=settings.ClickHouseSettings(password=password),
        gateway=settings.GatewaySettings(http_port=port, acknowledge_within_s=within_s),
        local=settings.LocalSettings(home=pathlib.Path(home)),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.as_environment(own).items():
            patch.setenv(name, value)
        assert settings.load() == own


def test_secrets_are_in_no_text_of_the_settings() -> None:
    """Neither str nor repr nor a dump shows them; only who asks by name gets them."""
    own = settings.Settings(
        postgres=settings.PostgresSettings(dsn=f"host=h password={SECRET}"),
        clickhouse=settings.ClickHouseSettings(password=SECRET),
    )
    for part in (own, own.postgres, own.clickhouse):
        for text in (str(part), repr(part), str(part.model_dump()), part.model_dump_json()):
            assert SECRET not in text
    assert SECRET in own.postgres.dsn.get_secret_value()


@pytest.mark.parametrize("address", ["clickhouse.internal:8123", "foo", "", "http://", "http://h:99999", "http://[::1"])
@pytest.mark.parametrize("name", ["CLICKHOUSE", "REGISTRY"])
def test_an_address_that_is_none_is_nobodys(monkeypatch: pytest.MonkeyPatch, name: str, address: str) -> None:
    """It is refused by its name, and not taken for the local server."""
    [problem] = problems(monkeypatch, **{f"PIPELINE_{name}__URL": address})
    assert f"{name.lower()}.url: Value error, must be an address with its scheme" in problem


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PIPELINE_GATEWAY__ACKNOWLEDGE_WITHIN_S", "inf"),
        ("PIPELINE_GATEWAY__ACKNOWLEDGE_WITHIN_S", "1e300"),
        ("PIPELINE_RETENTION__METRICS_1D_DAYS", "9999999"),
    ],
)
def test_times_without_end_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """What Kafka's clients or a calendar cannot hold is told at the start, by its name."""
    [problem] = problems(monkeypatch, **{variable: value})
    assert variable.removeprefix("PIPELINE_").replace("__", ".").lower() in problem


@pytest.mark.parametrize(
    "variables",
    [
        {"PIPELINE_POSTGRES__PASSWORD": SECRET},
        {"PIPELINE_POSTGRES__DSN__PASSWORD": SECRET},
        {"PIPELINE_POSTGRES": f'{{"dsn": "password={SECRET}"'},
        {"PIPELINE_POSTGRES": f'{{"dsn": ["{SECRET}"]}}'},
        {"PIPELINE_CLICKHOUSE__PASSWORD": SECRET, "PIPELINE_CLICKHOUSE__DATABASE": "No Name"},
        {"PIPELINE_POSTGRES_DSN": SECRET},
        {"PIPELINE_CLICKHOUSE__URL": f"http://u:{SECRET}@h:8123"},
        {"PIPELINE_REGISTRY__URL": f"http://{SECRET}@h"},
        {"PIPELINE_OTLP_WRITER__ENDPOINT": f"https://h/api?key={SECRET}"},
    ],
)
def test_secrets_are_in_no_problem(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """A secret under a wrong key, of a wrong type, beside a mistake or in an address, which is shown, is not quoted."""
    found = problems(monkeypatch, **variables)
    assert found
    assert not any(SECRET in problem for problem in found)


def test_secrets_of_a_broken_file_are_in_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """A line that does not parse is named by its place."""
    found = problems(monkeypatch, PIPELINE_SETTINGS=file(tmp_path, f'[postgres]\ndsn = "{SECRET}\n'))
    assert found
    assert not any(SECRET in problem for problem in found)
