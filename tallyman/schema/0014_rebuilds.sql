-- Past usage under new definitions: the rows of rebuilds, each in its original booking, under the number of its rebuild.
-- They count where the list (switches) says so; rows of attempts that came to nothing are read by nobody.
CREATE TABLE IF NOT EXISTS usage_rebuilt
(
    meter LowCardinality(String),
    subject String,
    dimensions String,
    minute DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
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
PARTITION BY generation
ORDER BY (meter, subject, dimensions, minute, booking, definitions, generation, item);

-- What each rebuild covers: these meters, minutes in [first_minute, end_minute), bookings up to last_booking and in it.
-- Written when all its rows are there, and never changed.
CREATE TABLE IF NOT EXISTS rebuilds
(
    generation UInt32,
    definitions UInt32,
    meters Array(String),
    first_minute DateTime('UTC'),
    end_minute DateTime('UTC'),
    last_booking UInt32,
    rows UInt64,
    made_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(made_at)
ORDER BY generation;

-- The list: which generations are in force, the newest last. The row with the largest number counts, as a whole; the
-- control store decides what follows what (a compare-and-set), this is where readers take it from.
CREATE TABLE IF NOT EXISTS switches
(
    switched UInt64,
    generations Array(UInt32),
    switched_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(switched_at)
ORDER BY switched;

-- All usage with its booking: sealed bookings from usage, later ones from usage_hot, and rebuilt rows instead of those
-- that a generation in force covers: of several the last in the list. The list is read once, for all three.
CREATE OR REPLACE VIEW usage_booked AS
WITH (
    SELECT groupArray((generation, meters, first_minute, end_minute, last_booking))
    FROM
    (
        SELECT r.generation AS generation, r.meters AS meters, r.first_minute AS first_minute, r.end_minute AS end_minute,
            r.last_booking AS last_booking
        FROM rebuilds AS r FINAL
        INNER JOIN
        (
            SELECT entry.1 AS generation, entry.2 AS place
            FROM (SELECT arrayJoin(arrayZip(listed, arrayEnumerate(listed))) AS entry
                FROM (SELECT argMax(generations, switched) AS listed FROM switches))
        ) AS l ON l.generation = r.generation
        ORDER BY l.place
    )
) AS in_force
SELECT
    meter, subject, dimensions, minute, item, booking, definitions, aggregation, scale, parameters, count, sum, min, max,
    latest, latest_us, latest_by
FROM
(
    SELECT
        meter, subject, dimensions, minute, item, booking, definitions, generation, aggregation, scale, parameters, count,
        sum, min, max, latest, latest_us, latest_by
    FROM usage
    WHERE generation = 0 AND booking <= (SELECT max(booking) FROM seals)
    UNION ALL
    SELECT
        meter, subject, dimensions, minute, item, booking, definitions, generation, aggregation, scale, parameters, count,
        sum, min, max, latest, latest_us, latest_by
    FROM usage_hot FINAL
    WHERE generation = 0 AND booking > (SELECT max(booking) FROM seals)
    UNION ALL
    SELECT
        meter, subject, dimensions, minute, item, booking, definitions, generation, aggregation, scale, parameters, count,
        sum, min, max, latest, latest_us, latest_by
    FROM usage_rebuilt FINAL
)
WHERE generation = if(
    empty(in_force),
    0,
    tupleElement(
        arrayLast(
            each -> has(each.2, meter) AND minute >= each.3 AND minute < each.4 AND booking <= each.5,
            in_force),
        1));
