"""Ticks that move the clock of a silent partition of a real Kafka."""

from __future__ import annotations

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from pipeline.outlet import KafkaOutlet
from tallyman.kafka import end_offsets, make_consumer
from tests.integration.booking import wait_for
from tests.stack import FreshTopic

pytestmark = pytest.mark.integration


def test_ticks_go_on_behind_one_that_kafka_refused(
    kafka_broker: str, fresh_topic: FreshTopic, caplog: pytest.LogCaptureFixture
) -> None:
    """None came any more until the worker was started again, and nothing was sealed."""
    topic = fresh_topic(partitions=1, max_message_bytes="10")
    outlet, consumer = KafkaOutlet([kafka_broker], topic, "progress", 0), make_consumer([kafka_broker])
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker)
    try:
        outlet.tick(0)
        wait_for(lambda: "MessageSizeTooLargeError" in caplog.text, "the tick to be refused")
        mended = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "1000"})
        admin.alter_configs([mended])

        def comes() -> bool:
            outlet.tick(0)
            return end_offsets(consumer, topic, [0])[0] > 0

        wait_for(comes, "a tick")
    finally:
        admin.close()
        consumer.close()
        outlet.close()
