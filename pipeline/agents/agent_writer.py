"""Kafka → an agent → Kafka: each message's outputs are acknowledged by all in-sync replicas before `write` returns."""

from collections.abc import Sequence

from pipeline.agents.api import Agent, Topics
from pipeline.agents.batch import checked, known
from pipeline.agents.isolated import Isolated
from pipeline.agents.transform import Made, layout_of, remainder, signal_of
from pipeline.delivery import Message, Partly
from pipeline.errors import Rejected
from pipeline.kafka.producer import Outbox, Outgoing
from pipeline.settings import AgentSettings, Settings
from pipeline.telemetry import metrics


class AgentWriter:
    """Writer of one agent; one batch at a time, so that its outputs keep the order of its inputs."""

    def __init__(self, agent: Agent, own: AgentSettings, settings: Settings, topics: Topics) -> None:
        self.name = agent.name
        self._isolated = Isolated(agent, own, settings, topics)
        self._outbox = Outbox(settings.kafka)

    def write(self, batch: Sequence[Message]) -> int:
        """Publish what the agent makes of the batch; return how many records it read."""
        made = [self._made(message) for message in batch]
        failed = [place for place, one in enumerate(made) if one.failed]
        if failed and len(batch) > 1:
            raise Rejected(f"{batch[failed[0]].place}: {made[failed[0]].failed[0].reason}")
        self._outbox.publish(
            [
                Outgoing(output.topic, message.partition, message.timestamp_ms, output.headers, output.value)
                for message, one in zip(batch, made, strict=True)
                for output in one.outputs
            ]
        )
        for one in made:
            self._count(one)
        if failed:
            [one] = made
            raise Partly(one.failed[0].reason, remainder(batch[0], one.failed))
        return sum(one.records for one in made)

    def close(self) -> None:
        """Let the agent stop."""
        self._isolated.close()

    def _made(self, message: Message) -> Made:
        try:
            checked(message, known(signal_of(layout_of(message))))
            return self._isolated.transform(message)
        except Rejected as reason:
            raise Rejected(f"{message.place}: {reason}") from reason.__cause__

    def _count(self, one: Made) -> None:
        metrics.AGENT_READ.labels(self.name).inc(one.records)
        for output in one.outputs:
            metrics.AGENT_EMITTED.labels(self.name, output.topic).inc(output.records)
        for reason, records in one.drops.items():
            metrics.AGENT_DROPPED.labels(self.name, reason).inc(records)
        metrics.AGENT_FAILED.labels(self.name).inc(len(one.failed))
