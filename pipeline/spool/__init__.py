"""The bounded disk spool: accepted messages wait here, fsynced, while Kafka is away. SQLite and its errors end here."""
