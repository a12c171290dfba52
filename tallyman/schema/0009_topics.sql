-- The topics that are booked, and which one follows which: what an ended topic accepted is known in the one that follows.
-- A partition of a topic that has ended stands in booking 4294967295, into which nothing is booked.
CREATE TABLE IF NOT EXISTS topics
(
    topic_id String,
    name String,
    partitions UInt32,
    chunk_size UInt64,
    follows String,
    noted_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(noted_at)
ORDER BY topic_id;
