"""Agents' files: imported one by one, so that a bad one says why and the others go on."""

import contextlib
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.agents import builtin
from pipeline.agents.api import Agent
from pipeline.errors import Misconfigured
from pipeline.settings import AgentSettings, Settings

OTHERS = ("test_", "_", "conftest")  # how files in a folder of agents begin that are none


@dataclass(frozen=True, slots=True)
class Loaded:
    """The agents of some files by name, and a sentence for each thing that is wrong."""

    agents: dict[str, Agent]
    problems: list[str]


def load(paths: Sequence[pathlib.Path]) -> Loaded:
    """The agents of files, of built-ins by name, and of all files in folders but tests and those that begin with an
    underscore."""
    found: dict[str, Agent] = {}
    problems: list[str] = []
    twice: set[str] = set()
    for path in _files(paths, problems):
        try:
            agents = of_file(path)
        except Misconfigured as error:
            problems += error.problems
            continue
        for each in agents:
            if each.name in found and each.where != found[each.name].where:
                problems.append(f"{each.where}: {each.name} is also the agent at {found[each.name].where}: rename one.")
                twice.add(each.name)
            found[each.name] = each
    return Loaded({name: each for name, each in sorted(found.items()) if name not in twice}, problems)


def of_file(path: pathlib.Path) -> list[Agent]:
    """The agents that one file makes; raises Misconfigured where it does not import or makes none."""
    path = pathlib.Path(os.path.realpath(path))  # resolve() raises where links go round
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # what lies beside it is its own
    spec = importlib.util.spec_from_file_location(f"agents_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise Misconfigured(f"{path} is no Python file: name one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):  # our own stdout may be somebody's JSON
            spec.loader.exec_module(module)
    except BaseException as error:  # SystemExit, what pytest skips by, a panic of Rust's: the others go on
        sys.modules.pop(spec.name, None)  # libraries look into whatever is there
        if isinstance(error, Misconfigured | KeyboardInterrupt):
            raise
        if isinstance(error, SyntaxError):
            said = f"{error.filename or path}:{error.lineno or 1}: does not import: {error.msg}."
            raise Misconfigured(said) from None
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        said = traceback.format_exception_only(error)[-1].strip()
        raise Misconfigured(f"{path}:{frames[-1].lineno if frames else 1}: does not import: {said}") from None
    found = [each for each in vars(module).values() if isinstance(each, Agent) and each.file == str(path)]
    if not found:
        raise Misconfigured(f"{path}:1: has no agent: put @agent(reads=…, writes=…, version=1) over a function.")
    return found


def settings_of(agent: Agent, settings: Settings) -> tuple[AgentSettings, Any]:
    """What `[agents.<name>]` says to the platform, and to the agent; raises Misconfigured with every problem."""
    given = settings.agents.get(agent.name, {})
    known = set(AgentSettings.model_fields)
    own = _Nothing if agent.settings is None else agent.settings
    wanted = set(own.model_fields)
    problems = [f"agents.{agent.name}.{key} is a key of the platform's: rename it." for key in known & wanted]
    problems += [
        f"settings: agents.{agent.name}.{key}: unknown; known are {', '.join(sorted(known | wanted))}."
        for key in given
        if key not in known | wanted
    ]
    parts: list[Any] = []
    for model, names in ((AgentSettings, known), (own, wanted)):
        try:
            parts.append(model.model_validate({key: value for key, value in given.items() if key in names}))
        except ValidationError as error:
            problems += [
                f"settings: agents.{agent.name}.{'.'.join(map(str, e['loc']))}: {e['msg']}."
                for e in error.errors(include_input=False, include_url=False)
            ]
    if problems:
        raise Misconfigured(problems)
    platform, mine = parts
    return platform, mine


class _Nothing(BaseModel):
    """Settings of an agent that has none."""


def _files(paths: Sequence[pathlib.Path], problems: list[str]) -> Iterable[pathlib.Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.glob("*.py") if not each.name.startswith(OTHERS))
        elif path.is_file():
            yield path
        elif builtin.path(str(path)).is_file():
            yield builtin.path(str(path))
        else:
            problems.append(
                f"{path} is neither a file nor a folder, nor one of {', '.join(builtin.names())}: name where your "
                "agents are."
            )
