-- What retention took behind the end of a topic before it was copied to the topic that follows: offsets from from_offset up
-- to to_offset, appended between the two clocks. booking, definitions: those in which the partition ended. Of rows that
-- begin at the same offset the longest counts.
CREATE TABLE IF NOT EXISTS late_lost
(
    topic_id LowCardinality(String),
    partition UInt32,
    chunk_size UInt64,
    from_offset UInt64,
    to_offset UInt64,
    from_clock_ms UInt64,
    to_clock_ms UInt64,
    booking UInt32,
    definitions UInt32,
    noticed_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(to_offset)
ORDER BY (topic_id, partition, from_offset);
