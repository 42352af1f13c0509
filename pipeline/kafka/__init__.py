"""The door to Kafka: confluent-kafka and its errors end here."""
