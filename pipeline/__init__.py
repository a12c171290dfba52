"""The pipeline books usage events from Kafka into ClickHouse, each exactly once."""
