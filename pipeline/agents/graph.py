"""Who reads and writes which topic: gateways, agents and writers as one graph, and what cannot be right in it."""

from collections.abc import Mapping

from pipeline.agents.api import Agent, Topics
from pipeline.errors import Misconfigured
from pipeline.record.schema import CURRENT, Signal

Declared = Mapping[str, str]  # the signal of each topic, as topics/*.yaml say


def topics_of(agent: Agent, declared: Declared) -> Topics:
    """Where the agent writes the records of each signal; raises Misconfigured where that is not told, or twice."""
    found: Topics = {}
    problems = [
        f"{agent.where}: {topic} of {agent.name} is no declared topic of records: write topics/{topic}.yaml, or let "
        "`pipeline agents new` write it."
        for topic in (agent.reads, *agent.writes)
        if declared.get(topic) not in CURRENT
    ]
    for topic in () if problems else agent.writes:
        signal: Signal = declared[topic]  # type: ignore[assignment]
        if signal in found:
            problems.append(f"{agent.where}: {agent.name} writes two topics of {signal}: {found[signal]} and {topic}.")
        found[signal] = topic
    if agent.reads in agent.writes:
        problems.append(f"{agent.where}: {agent.name} reads what it writes, {agent.reads}.")
    if problems:
        raise Misconfigured(problems)
    return found
