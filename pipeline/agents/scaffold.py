"""What `pipeline agents new` writes: an agent, its test, and the topics that it writes where nobody declared them."""

import keyword
import pathlib
import re
import sys

import yaml

from pipeline.agents import builtin
from pipeline.agents.api import RESERVED
from pipeline.agents.load import OTHERS
from pipeline.errors import Misconfigured
from pipeline.record.records import TYPES
from pipeline.record.schema import CURRENT, Signal

NAME = re.compile(r"[a-z][a-z0-9_]{1,40}")
AGENT = '''\
"""{title}: say here in a sentence what it does."""

from pipeline.agents import {record}, agent


@agent(reads="{reads}", writes="{writes}", version=1)
def {name}(record: {record}) -> {record} | None:
    return record.replace({field}=record.{field}.strip())
'''
TEST = '''\
from {name} import {name}
from pipeline.agents import {record}


def test_{name}() -> None:
    """What it is given comes back without blanks around it."""
    assert {name}({record}({field}=" hello ")) == {record}({field}="hello")
'''
FIELDS: dict[Signal, str] = {"logs": "body", "metrics": "description", "traces": "name", "events": ""}
HEADER = "# yaml-language-server: $schema=topic.schema.json\n"


def files(
    name: str, signal: Signal, topics: tuple[str, str], folder: pathlib.Path, declared: pathlib.Path
) -> dict[pathlib.Path, str]:
    """What to write where, for an agent between the two `topics`; raises Misconfigured where one of it is there."""
    reads, writes = topics
    if not NAME.fullmatch(name):
        raise Misconfigured(f"{name!r} is no name for an agent: lower-case letters, digits and _, such as mask_emails.")
    for what, is_so in (
        ("is a name of the platform's", name in RESERVED or name == "pipeline"),
        ("is a built-in agent", name in builtin.names()),
        ("is a word or a module of Python's", keyword.iskeyword(name) or name in sys.stdlib_module_names),
        (f"begins like what `pipeline agents` leaves out ({', '.join(OTHERS)})", name.startswith(OTHERS)),
    ):
        if is_so:
            raise Misconfigured(f"{name!r} cannot be an agent's name, for it {what}: choose another.")
    said = {
        "name": name, "title": name.replace("_", " ").capitalize(), "reads": reads, "writes": writes,
        "record": TYPES[signal].__name__, "field": FIELDS[signal],
    }  # fmt: skip
    made = {folder / f"{name}.py": AGENT.format(**said), folder / f"test_{name}.py": TEST.format(**said)}
    there = [str(path) for path in made if path.exists()]
    if there:
        raise Misconfigured(f"{' and '.join(there)} exist: choose another name.")
    topic = {
        "name": writes, "signal": signal, "description": f"What {name} makes of {reads}.", "owner": "platform",
        "schema": CURRENT[signal], "partitions": 4, "retention_hours": 168, "max_message_bytes": 1_048_576,
    }  # fmt: skip
    dead = {
        "name": f"{writes}_dlq", "signal": signal, "owner": "platform",
        "description": f"Messages of {writes} that no retry can store, as raw bytes, with the reason and where from.",
        "partitions": 4, "retention_hours": 168, "max_message_bytes": 16_777_216,
    }  # fmt: skip
    for each in (topic, dead):
        path = declared / f"{each['name']}.yaml"
        if not path.exists():
            made[path] = HEADER + yaml.safe_dump(each, sort_keys=False)
    return made
