"""Topics in which markers of transactions lie between messages, as MirrorMaker writes them."""

from confluent_kafka import Producer

from pipeline.kafka.groups import Groups
from pipeline.kafka.reader import Reader
from tests.agents.process import Process, until
from tests.contract.test_stores import gauges, new_service, one
from tests.otlp.requests import T0

TRANSACTIONS = 40
WITHIN_S = 15.0  # a commit is made every second


def test_what_is_stored_of_many_transactions_is_acknowledged_at_once(writer: Process) -> None:
    """The group comes to the last message with the next commits, not by one transaction a commit."""
    settings = writer.settings
    groups, reader = Groups(settings.kafka), Reader(settings.kafka)
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": "mirror", "log_level": 0}
    )
    producer.init_transactions()
    for number in range(TRANSACTIONS):
        message = one("metrics", gauges(new_service(), ("m", T0 + number * 10**9, 1.0)))
        producer.begin_transaction()
        producer.produce(message.topic, message.value, partition=0, headers=list(message.headers.items()))
        producer.commit_transaction()
    last = max(each.offset for each in reader.read(reader.retained(["metrics_raw"])))
    assert last == 2 * (TRANSACTIONS - 1)
    writer.start()

    def committed() -> int:
        return max((each.offset for each in groups.committed("pg_writer", [("metrics_raw", 0)]).values()), default=0)

    until(lambda: committed() > 0, "nothing was acknowledged")
    until(lambda: committed() == last + 1, "not everything was acknowledged", WITHIN_S)
