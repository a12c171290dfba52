-- Under which definitions an identity was accepted: what is taken back must be what was counted.
ALTER TABLE ids ADD COLUMN IF NOT EXISTS definitions UInt32 DEFAULT 1;

-- Accepted corrections: what an event counted as, and what it counts as since (empty: nothing). Keyed by position, so
-- that writing them again changes nothing. version 1 corrects the event itself, version 2 version 1, and so on.
CREATE TABLE IF NOT EXISTS corrections
(
    topic_id LowCardinality(String),
    partition UInt32,
    offset UInt64,
    subject String,
    source String,
    id String,
    version UInt32,
    first_offset UInt64,
    booking UInt32,
    appended_at DateTime64(3, 'UTC'),
    reason String,
    was String CODEC(ZSTD(1)),
    now String CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (topic_id, partition, offset);
