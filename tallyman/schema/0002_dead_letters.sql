-- What of its record's headers says how a dead letter is read and who it is, byte for byte: needed to let it in again.
ALTER TABLE dead_letters ADD COLUMN IF NOT EXISTS headers Map(String, String);

-- What was done about a dead letter: retried (sent through Kafka again) or discarded, with what was mended (JSON). Keyed
-- by position like the letters; the last action wins.
CREATE TABLE IF NOT EXISTS dead_letters_handled
(
    topic_id LowCardinality(String),
    partition UInt32,
    offset UInt64,
    event_index UInt32,
    action LowCardinality(String),
    mended String,
    handled_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(handled_at)
ORDER BY (topic_id, partition, offset, event_index);
