"""Kafka's own command-line tools, from the jars of the broker that the tests use."""

import subprocess

from pipeline.local import parts
from pipeline.local.servers import JVM
from pipeline.settings import Settings

GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
CONFIGS = "kafka.admin.ConfigCommand"


def kafka_tool(name: str, settings: Settings, *options: str) -> str:
    """What it printed; fails where it does not end with 0."""
    jars = parts.kafka_jars(Settings().local.parts, print)
    command = ["java", *JVM, "-cp", f"{jars}/*", name, "--bootstrap-server", settings.kafka.bootstrap_servers, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
