"""The registry as its clients see it: every verb, every refusal, and two at once."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

from pipeline.settings import PostgresSettings, RegistrySettings
from pipeline.tables.model import parsed
from tests.conftest import free_ports
from tests.registry.served import Registry, serving
from tests.tables import made

ADDED = {"name": "region_name", "type": "string", "default": ""}


def test_a_tables_life(registry: Registry) -> None:
    """Registered, shown, evolved, retired: each answer is the table as it is then, and nothing is ever gone."""
    answer = registry.post("/tables", made.deployments() | {"by": "ann"})
    assert (answer.status_code, parsed(answer.json()).schema_name) == (201, "deployments/1")
    assert registry.get("/tables/deployments").json() == answer.json()
    schema = made.with_fields(made.deployments(), ADDED)
    change = {"expected_version": 1, "schema": schema, "retention_days": 7, "by": "bob"}
    evolved = registry.post("/tables/deployments/versions", change).json()
    assert [column.name for column in parsed(evolved).columns][-1] == "region_name"
    same = registry.post("/tables/deployments/versions", change | {"expected_version": 2})
    assert (same.status_code, same.json()) == (200, evolved)
    retired = registry.post("/tables/deployments/retire", {"expected_version": 2, "by": "eve"}).json()
    assert (retired["state"], [one["who"] for one in retired["history"]]) == ("retired", ["ann", "bob", "eve"])
    assert registry.get().json() == {"tables": [retired]}
    assert registry.post("/tables", made.deployments() | {"by": "ann"}).status_code == 409


def test_of_two_registrations_at_once_one_wins(registry: Registry) -> None:
    """Of many at once exactly one is 201, and each other is 409 with a sentence that names the winner."""
    with ThreadPoolExecutor(8) as pool:
        owners = [f"team{n}" for n in range(8)]
        answers = list(pool.map(lambda who: registry.post("/tables", made.audit_log(owner=who) | {"by": who}), owners))
    assert sorted(answer.status_code for answer in answers) == [201] + 7 * [409]
    [winner] = [answer.json()["owner"] for answer in answers if answer.status_code == 201]
    assert registry.get("/tables/audit_log").json()["owner"] == winner
    lost = [answer.json()["error"] for answer in answers if answer.status_code == 409]
    assert all(f"registered by {winner}" in sentence for sentence in lost)


def test_of_two_evolutions_at_once_one_wins(registry: Registry) -> None:
    """The loser is told to look again, and its field is not there."""
    registry.register(made.deployments())

    def evolve(name: str) -> httpx.Response:
        schema = made.with_fields(made.deployments(), ADDED | {"name": name})
        return registry.post("/tables/deployments/versions", {"expected_version": 1, "schema": schema, "by": name})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(evolve, [f"field{n}" for n in range(8)]))
    assert sorted(answer.status_code for answer in answers) == [201] + 7 * [409]
    table = parsed(registry.get("/tables/deployments").json())
    assert (table.version, len(table.columns)) == (2, 7)


def test_clients_ask_for_what_they_know(registry: Registry) -> None:
    """The list has an ETag: 304 until something changes."""
    registry.register(made.deployments())
    etag = registry.get().headers["ETag"]
    assert registry.get(headers={"If-None-Match": etag}).status_code == 304
    registry.retire("deployments", 1)
    assert registry.get(headers={"If-None-Match": etag}).status_code == 200


def test_a_wrong_document_is_told_all_its_problems(registry: Registry) -> None:
    """400 with path, expected and got of each; nothing is stored."""
    answer = registry.post("/tables", made.deployments(name="users", keys=["nobody"]) | {"by": "ann", "colour": "red"})
    assert answer.status_code == 400
    assert {problem["path"] for problem in answer.json()["problems"]} == {"colour", "schema.name", "keys[0]"}
    assert registry.get().json() == {"tables": []}


REFUSED: list[tuple[str, Any, int, str]] = [
    ("/tables", [], 400, "problems"),
    ("/tables", {}, 400, "problems"),
    ("/tables", made.deployments(), 400, "problems"),
    ("/tables", made.deployments() | {"by": "a\0"}, 400, "problems"),
    ("/tables", made.deployments(owner="\ud800") | {"by": "ann"}, 400, "problems"),
    ("/tables", {"by": "ann", "name": "x" * 2**21}, 413, "larger"),
    ("/tables/deployment/versions", {"expected_version": 1, "by": "ann"}, 404, "near it are deployments"),
    ("/tables/%00/retire", {"expected_version": 1, "by": "ann"}, 404, "no table"),
    ("/tables/deployments/versions", {"expected_version": 7, "by": "ann"}, 409, "has version 1, not 7"),
    ("/tables/deployments/versions", {"expected_version": "1", "by": "ann"}, 400, "problems"),
    ("/tables/deployments/retire", {"by": "ann"}, 400, "problems"),
    ("/tables/deployments", {}, 405, "POST to versions"),
    ("/table", {}, 404, "the paths are"),
]


@pytest.mark.parametrize(("path", "document", "status", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_says_why(registry: Registry, path: str, document: Any, status: int, said: str) -> None:
    """Every refusal has its status and a sentence, and changes nothing."""
    registry.register(made.deployments())
    before = registry.get().json()
    body = json.dumps(document).encode()
    answer = httpx.post(registry.settings.address + path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text
    assert registry.get().json() == before


def test_another_sites_page_cannot_register(registry: Registry) -> None:
    """A body of a type that browsers send without asking is refused."""
    body = json.dumps(made.deployments() | {"by": "ann"})
    answer = httpx.post(registry.settings.address + "/tables", content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 400


def test_there_is_room_for_so_many(database: PostgresSettings) -> None:
    """One table more than registry.max_tables is refused."""
    with psycopg.connect(database.dsn.get_secret_value(), autocommit=True) as connection:
        connection.execute("TRUNCATE table_registry")
    with serving(database, RegistrySettings(port=free_ports(1)[0], max_tables=1)) as registry:
        registry.register(made.deployments())
        answer = registry.post("/tables", made.audit_log() | {"by": "ann"})
        assert (answer.status_code, "registry.max_tables" in answer.text) == (409, True)


def test_with_a_key_nobody_else_is_answered(database: PostgresSettings) -> None:
    """With registry.api_key each request on tables must show it."""
    own = RegistrySettings(port=free_ports(1)[0], api_key="secret")  # type: ignore[arg-type]
    with serving(database, own) as registry:
        assert registry.get().status_code == 401
        assert registry.get(headers={"authorization": b"Bearer other\xff"}).status_code == 401
        assert registry.get(headers={"authorization": "Bearer secret"}).status_code == 200


def test_a_store_that_is_away_is_told() -> None:
    """Without PostgreSQL the answer is 503 with a time to come again."""
    with serving(PostgresSettings(dsn="host=127.0.0.1 port=1 user=a dbname=a")) as registry:  # type: ignore[arg-type]
        answer = registry.get()
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def command(registry: Registry, *words: str, code: int = 0, said: str = "y\n") -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "registry", *words], input=said, capture_output=True, text=True, check=False,
        env={"PIPELINE_REGISTRY__PORT": str(registry.settings.port), "PATH": "/usr/bin:/bin"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_the_command_speaks_it(registry: Registry, tmp_path: Any) -> None:
    """register, list, show, evolve and retire print what they will do, ask, and do it; --json gives documents."""
    file = tmp_path / "deployments.json"
    file.write_text(json.dumps(made.deployments()))
    command(registry, "register", str(file), said="n\n", code=130)
    assert "service string" in command(registry, "register", str(file), "--by", "ann").stdout
    assert "already" in command(registry, "register", str(file), "--yes", code=2).stderr
    assert "Nothing to do" in command(registry, "evolve", str(file)).stdout
    backwards = made.deployments()
    names = [field["name"] for field in backwards["schema"]["fields"]]
    backwards["schema"] = backwards["schema"] | {"fields": backwards["schema"]["fields"][::-1]}
    file.write_text(json.dumps(backwards))
    told = command(registry, "evolve", str(file), code=2).stderr
    assert f"order never changes; put these first, so: {', '.join(names)}." in told
    file.write_text(json.dumps(made.deployments(schema=made.with_fields(made.deployments(), ADDED), owner="ops")))
    done = command(registry, "evolve", str(file), "--yes").stdout
    assert "add region_name string" in done
    assert "owner: platform → ops" in done
    assert json.loads(command(registry, "show", "deployments", "--json").stdout)["version"] == 2
    assert "registered as version 1 by ann" in command(registry, "show", "deployments").stdout
    command(registry, "retire", "deployments", "--yes", "--by", "eve")
    [table] = json.loads(command(registry, "list", "--json").stdout)
    assert (table["state"], table["history"][-1]["who"]) == ("retired", "eve")
    file.write_text(json.dumps(made.deployments(name="deploys", owner="")))
    assert len(command(registry, "register", str(file), code=2).stderr.splitlines()) == 2
    assert "near it" in command(registry, "show", "deploymens", code=2).stderr


def test_the_command_says_that_the_registry_is_away() -> None:
    """Exit code 3, and where it was looked for."""
    away = Registry(RegistrySettings(port=1))
    assert "http://127.0.0.1:1" in command(away, "list", code=3).stderr
