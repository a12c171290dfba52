-- Usage as it is booked. A row of usage_hot is a pure function of a prefix of the log: any writer may write any
-- prefix, the longest one (covered) wins. Quantities are integers scaled by 10^scale; min, max and latest are
-- filled for the aggregations that need them.
CREATE TABLE IF NOT EXISTS usage_hot
(
    meter LowCardinality(String),
    subject String,
    dimensions String,
    minute DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    booking UInt32,
    definitions UInt32,
    topic_id LowCardinality(String),
    partition UInt32,
    chunk UInt64,
    generation UInt32,
    covered UInt64,
    aggregation LowCardinality(String),
    scale UInt8,
    count UInt64,
    sum Int128,
    min Int128,
    max Int128,
    latest Int128,
    latest_us Int64,
    latest_by FixedString(16)
)
ENGINE = ReplacingMergeTree(covered)
PARTITION BY booking
ORDER BY (meter, subject, dimensions, minute, booking, definitions, topic_id, partition, chunk, generation);

-- How far each chunk is booked: the place reached, and the place where its last booking began (a restart begins there).
-- counts = received, aggregated, duplicate, dead, ignored, forwarded, conflict since the chunk's start.
CREATE TABLE IF NOT EXISTS progress
(
    topic_id LowCardinality(String),
    partition UInt32,
    chunk UInt64,
    generation UInt32,
    covered UInt64,
    reached_offset UInt64,
    reached_clock_ms UInt64,
    reached_booking UInt32,
    reached_definitions UInt32,
    reached_digest UInt64,
    turned_offset UInt64,
    turned_clock_ms UInt64,
    turned_booking UInt32,
    turned_definitions UInt32,
    turned_digest UInt64,
    reached_counts Array(UInt64),
    turned_counts Array(UInt64),
    written_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(covered)
ORDER BY (topic_id, partition, chunk, generation);

-- Accepted identities, at their positions. No TTL: an id is remembered at least as long as a copy of it could be accepted.
-- Ids are asked for one by one, and lie anywhere: small granules in small blocks keep what is read for one small.
CREATE TABLE IF NOT EXISTS ids
(
    identity_high UInt64,
    identity_low UInt64,
    topic_id LowCardinality(String),
    partition UInt32,
    offset UInt64 CODEC(Delta, ZSTD(1)),
    event_index UInt32,
    remembered_us Int64 CODEC(Delta, ZSTD(1)),
    digest UInt64
)
ENGINE = ReplacingMergeTree
ORDER BY (identity_high, identity_low, topic_id, partition, offset, event_index)
SETTINGS index_granularity = 1024, min_compress_block_size = 8192, max_compress_block_size = 8192;

-- What could not be accepted, with its bytes; keyed by position, so that writing it again changes nothing.
CREATE TABLE IF NOT EXISTS dead_letters
(
    topic_id LowCardinality(String),
    partition UInt32,
    offset UInt64,
    event_index UInt32,
    generation UInt32,
    appended_at DateTime64(3, 'UTC'),
    booking UInt32,
    reason LowCardinality(String),
    detail String,
    content_type LowCardinality(String),
    type String,
    source String,
    subject String,
    body String CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY booking
ORDER BY (topic_id, partition, offset, event_index, generation);

-- A later copy of an accepted event with other content: counted as a duplicate, reported here, never added.
CREATE TABLE IF NOT EXISTS conflicts
(
    topic_id LowCardinality(String),
    partition UInt32,
    offset UInt64,
    event_index UInt32,
    first_offset UInt64,
    first_event_index UInt32,
    booking UInt32,
    appended_at DateTime64(3, 'UTC'),
    body String CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (topic_id, partition, offset, event_index);

-- The raw archive: records as they came, keyed by position. Ground truth for audit and rebuild.
CREATE TABLE IF NOT EXISTS events
(
    topic_id LowCardinality(String),
    partition UInt32,
    offset UInt64 CODEC(Delta, ZSTD(1)),
    appended_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    booking UInt32,
    headers Map(String, String),
    body String CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY booking
ORDER BY (topic_id, partition, offset);

-- Sealed usage: the rows of usage_hot without their chunk, one ClickHouse partition for each closed booking.
CREATE TABLE IF NOT EXISTS usage
(
    meter LowCardinality(String),
    subject String,
    dimensions String,
    minute DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    booking UInt32,
    definitions UInt32,
    generation UInt32,
    aggregation LowCardinality(String),
    scale UInt8,
    count UInt64,
    sum Int128,
    min Int128,
    max Int128,
    latest Int128,
    latest_us Int64,
    latest_by FixedString(16)
)
ENGINE = MergeTree
PARTITION BY booking
ORDER BY (meter, subject, dimensions, minute, booking, definitions, generation);

-- One row for each sealed booking. max(booking) is the only "sealed to" that readers use. places is JSON:
-- [{"topic_id", "partition", "chunk", "offset", "clock_ms", "booking", "definitions", "digest"}, ...].
CREATE TABLE IF NOT EXISTS seals
(
    booking UInt32,
    generation UInt32,
    rows UInt64,
    events UInt64,
    first_minute DateTime('UTC'),
    last_minute DateTime('UTC'),
    places String,
    sealed_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(sealed_at)
ORDER BY (booking, generation);

-- All usage with its booking: sealed bookings from usage, later ones from usage_hot. Rows of zombies below the seal stay invisible.
CREATE VIEW IF NOT EXISTS usage_booked AS
SELECT
    meter, subject, dimensions, minute, booking, definitions, aggregation, scale, count, sum, min, max, latest, latest_us,
    latest_by
FROM usage
WHERE generation = 0 AND booking <= (SELECT max(booking) FROM seals)
UNION ALL
SELECT
    meter, subject, dimensions, minute, booking, definitions, aggregation, scale, count, sum, min, max, latest, latest_us,
    latest_by
FROM usage_hot FINAL
WHERE generation = 0 AND booking > (SELECT max(booking) FROM seals);

-- What everyone reads: one row for each series and minute, value as an exact decimal in the meter's unit
-- (an average is cut off behind 18 digits). The newest definitions say which aggregation a meter is.
CREATE VIEW IF NOT EXISTS usage_minute AS
SELECT
    meter,
    subject,
    dimensions,
    minute,
    sum(b.count) AS events,
    argMax(b.aggregation, b.definitions) AS aggregation,
    sum(toInt256(b.sum) * toInt256(intExp10(18 - b.scale))) AS sum_atto,
    min(toInt256(b.min) * toInt256(intExp10(18 - b.scale))) AS min_atto,
    max(toInt256(b.max) * toInt256(intExp10(18 - b.scale))) AS max_atto,
    argMax(toInt256(b.latest) * toInt256(intExp10(18 - b.scale)), (b.latest_us, b.latest_by)) AS latest_atto,
    divideDecimal(
        toDecimal256(
            multiIf(
                aggregation IN ('sum', 'avg'), sum_atto,
                aggregation = 'min', min_atto,
                aggregation = 'max', max_atto,
                aggregation = 'latest', latest_atto,
                toInt256(events) * toInt256(1000000000000000000)),
            0),
        toDecimal256(multiIf(aggregation = 'avg', toInt256(events), toInt256(1)) * toInt256(1000000000000000000), 0),
        18) AS value
FROM usage_booked AS b
GROUP BY meter, subject, dimensions, minute;
