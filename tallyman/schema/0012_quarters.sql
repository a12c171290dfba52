-- Sealed usage by quarters of an hour, made when a booking is sealed: every zone's days and months begin on one of them.
-- The same figures as usage's, added up; of meters that need single moments (first, time_weighted, lifecycle, counter)
-- only how many there were, under no item. A row is a function of its sealed booking, so writing it again changes nothing.
CREATE TABLE IF NOT EXISTS usage_quarter
(
    meter LowCardinality(String),
    subject String,
    dimensions String,
    quarter DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    booking UInt32,
    definitions UInt32,
    generation UInt32,
    item String,
    aggregation LowCardinality(String),
    scale UInt8,
    parameters LowCardinality(String),
    count Int64,
    sum Int128,
    min Int128,
    max Int128,
    latest Int128,
    latest_us Int64,
    latest_by FixedString(16)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(toDate(intDiv(booking, 1000)))
ORDER BY (meter, subject, dimensions, quarter, booking, definitions, generation, item);

-- The sealed bookings that usage_quarter holds in whole; readers take the others from usage.
CREATE TABLE IF NOT EXISTS rollups
(
    booking UInt32,
    generation UInt32,
    rows UInt64,
    rolled_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(rolled_at)
ORDER BY (booking, generation);
