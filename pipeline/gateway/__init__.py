"""The front door: OTLP over gRPC and HTTP into Kafka, OK only when every accepted record is safe there."""
