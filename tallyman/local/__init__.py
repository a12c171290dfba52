"""The embedded stack: a real Kafka and a real ClickHouse on loopback, under one data folder, supervised."""
