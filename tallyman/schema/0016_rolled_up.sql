-- Sealed usage by blocks of a quarter of an hour, an hour, three, six and twelve hours, made when a booking is sealed: a
-- long range is read from the largest blocks that fit into its windows, and its edges from smaller ones. Every zone's days
-- begin with a quarter. The same figures as usage's, added up; of meters that need single moments (first, time_weighted,
-- lifecycle, counter) only how many there were, under no item. A booking is rolled up by one attempt, number 1, and by another
-- one if that came to nothing; readers take the rows of one of those in rolled_up, so no two rows have to become one.
-- Days of a zone need the same small ones day after day, so those of one time of day lie together. A month that gets no
-- more bookings becomes one part. Sums have 256 bits: those of a minute fit 128, those of hours of the largest
-- quantities need not.
CREATE TABLE IF NOT EXISTS usage_rolled_up
(
    meter LowCardinality(String),
    seconds UInt16,
    subject String,
    dimensions String,
    of_day UInt32 MATERIALIZED toUInt32(start) % 86400,
    start DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    booking UInt32,
    attempt UInt32,
    definitions UInt32,
    item String,
    aggregation LowCardinality(String),
    scale UInt8,
    parameters LowCardinality(String),
    count Int64,
    sum Int256,
    min Int128,
    max Int128,
    latest Int128,
    latest_us Int64,
    latest_by FixedString(16)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(toDate(intDiv(booking, 1000)))
ORDER BY (meter, seconds, subject, of_day, dimensions, start)
SETTINGS index_granularity = 1024, min_age_to_force_merge_seconds = 172800, min_age_to_force_merge_on_partition_only = 1;

-- Who rolls up a booking, or did: each attempt belongs to one, who alone writes its rows, once. Of two who begin one at once
-- the first has it, since an insert with a token that was used is dropped; and each looks whether it is alone.
CREATE TABLE IF NOT EXISTS rolling_up
(
    booking UInt32,
    attempt UInt32,
    owner UInt64,
    begun_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = MergeTree
ORDER BY (booking, attempt)
SETTINGS non_replicated_deduplication_window = 10000;

-- The attempts whose rows are all there. (usage_quarter, rollups, usage_block and blocks are those of older versions: nobody
-- reads them any more.)
CREATE TABLE IF NOT EXISTS rolled_up
(
    booking UInt32,
    attempt UInt32,
    made_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = MergeTree
ORDER BY (booking, attempt);
