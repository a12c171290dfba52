-- Partitions whose log is not what was booked, where each stood when it was set aside. It counts as long as nothing was
-- booked behind that offset and no repair was decided.
CREATE TABLE IF NOT EXISTS quarantines
(
    topic_id LowCardinality(String),
    partition UInt32,
    offset UInt64,
    repairs UInt32,
    reason LowCardinality(String),
    detail String,
    noticed_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (topic_id, partition, offset, repairs);

-- Decisions of operators, the first of a partition with number 1: what is booked below from_offset stays, the offsets up to
-- to_offset are skipped, booking goes on at to_offset in the booking that is named. Chunks before it are closed by it.
-- from_clock_ms: the log clock where booking stopped; to_clock_ms: when the first record behind was appended.
CREATE TABLE IF NOT EXISTS repairs
(
    topic_id LowCardinality(String),
    partition UInt32,
    number UInt32,
    chunk_size UInt64,
    from_offset UInt64,
    to_offset UInt64,
    from_clock_ms UInt64,
    to_clock_ms UInt64,
    from_booking UInt32,
    booking UInt32,
    definitions UInt32,
    counts Array(UInt64),
    reason String,
    note String,
    who String,
    decided_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (topic_id, partition, number);

-- Of how many repairs of its partition the writer of a row knew. A repair makes the database refuse rows of whoever does
-- not know of it.
ALTER TABLE usage_hot ADD COLUMN IF NOT EXISTS repairs UInt32 DEFAULT 0;
ALTER TABLE progress ADD COLUMN IF NOT EXISTS repairs UInt32 DEFAULT 0;
ALTER TABLE ids ADD COLUMN IF NOT EXISTS repairs UInt32 DEFAULT 0;
