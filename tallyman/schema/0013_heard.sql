-- Which numbered batches stand in the log, at their home: runs of sequence numbers without a gap, by chunk, booking and
-- definitions. A row says what a prefix of the log says, and stays true for longer ones: readers join the rows of an epoch.
-- Watermarks are those of the run's first and last batch (0: it had none), clocks are the log clock at its oldest and its newest. "" in
-- subjects or types stands for more than are listed, or for not known.
CREATE TABLE IF NOT EXISTS heard
(
    collector String,
    epoch String,
    topic_id LowCardinality(String),
    partition UInt32,
    chunk UInt64,
    booking UInt32,
    definitions UInt32,
    first UInt64,
    last UInt64,
    first_watermark_us Int64,
    last_watermark_us Int64,
    first_clock_ms UInt64,
    clock_ms UInt64,
    subjects Array(String),
    types Array(String),
    covered UInt64
)
ENGINE = ReplacingMergeTree(covered)
PARTITION BY toYYYYMM(toDate(intDiv(booking, 1000)))
ORDER BY (collector, epoch, topic_id, partition, chunk, booking, definitions, first);

-- The newest of each epoch: largest and smallest of what heard says, so that writing it again changes nothing.
CREATE TABLE IF NOT EXISTS heard_newest
(
    collector String,
    epoch String,
    topic_id LowCardinality(String),
    partition UInt32,
    first_clock_ms SimpleAggregateFunction(min, UInt64),
    clock_ms SimpleAggregateFunction(max, UInt64),
    last SimpleAggregateFunction(max, UInt64),
    watermark_us SimpleAggregateFunction(max, Int64),
    subjects SimpleAggregateFunction(groupUniqArrayArray, Array(String)),
    types SimpleAggregateFunction(groupUniqArrayArray, Array(String))
)
ENGINE = AggregatingMergeTree
ORDER BY (collector, epoch, topic_id, partition);

CREATE MATERIALIZED VIEW IF NOT EXISTS heard_to_newest TO heard_newest AS
SELECT collector, epoch, topic_id, partition, first_clock_ms, clock_ms, last,
    last_watermark_us AS watermark_us, subjects, types
FROM heard;

-- Collectors that an operator says will not come back. One that is heard again, behind heard_ms, is none of them.
CREATE TABLE IF NOT EXISTS collectors_retired
(
    collector String,
    heard_ms UInt64,
    retired_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(heard_ms)
ORDER BY collector;

-- Sequence numbers that are missing inside an epoch, first to last; their readings lie between after and before (1970: not
-- known). What an epoch sent before it was first heard is not looked for.
CREATE VIEW IF NOT EXISTS collector_gaps AS
SELECT
    collector,
    epoch,
    reached.1 + 1 AS first,
    next - 1 AS last,
    fromUnixTimestamp64Micro(reached.2, 'UTC') AS after,
    fromUnixTimestamp64Micro(next_watermark_us, 'UTC') AS before
FROM
(
    SELECT
        collector,
        epoch,
        h.first AS next,
        h.first_watermark_us AS next_watermark_us,
        row_number() OVER w AS place,
        max((h.last, h.last_watermark_us)) OVER
            (PARTITION BY collector, epoch ORDER BY h.first, h.last ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
    FROM heard AS h
    WINDOW w AS (PARTITION BY collector, epoch ORDER BY h.first, h.last)
)
WHERE place > 1 AND next > reached.1 + 1;

-- Each collector by its newest epoch. Silent: the log clock of its partition went on for more than 30 seconds (three
-- heartbeats) without it. Retired: by an operator, or silent for seven days.
CREATE VIEW IF NOT EXISTS collectors AS
WITH
    clocks AS
    (
        SELECT topic_id, partition, max(reached_clock_ms) AS now_ms
        FROM progress
        WHERE generation = 0
        GROUP BY topic_id, partition
        HAVING max(reached_booking) < 4294967295
    ),
    newest AS
    (
        SELECT
            n.collector AS collector,
            argMax(n.epoch, n.clock_ms) AS epoch,
            uniqExact(n.epoch) AS epochs,
            max(n.clock_ms) AS heard_ms,
            argMax(n.watermark_us, n.clock_ms) AS watermark_us,
            argMax(n.last, n.clock_ms) AS sequence,
            argMax(n.topic_id, n.clock_ms) AS topic_id,
            argMax(n.partition, n.clock_ms) AS partition,
            groupUniqArrayArray(n.subjects) AS subjects,
            groupUniqArrayArray(n.types) AS types
        FROM (SELECT * FROM heard_newest FINAL) AS n
        GROUP BY n.collector
    ),
    (SELECT max(now_ms) FROM clocks) AS latest_ms
SELECT
    n.collector AS collector,
    multiIf(r.heard_ms >= n.heard_ms OR now_ms > n.heard_ms + 604800000, 'retired', now_ms > n.heard_ms + 30000, 'silent', 'live') AS state,
    fromUnixTimestamp64Milli(toInt64(n.heard_ms), 'UTC') AS last_heard,
    fromUnixTimestamp64Micro(n.watermark_us, 'UTC') AS watermark,
    n.epoch AS epoch,
    n.sequence AS sequence,
    n.epochs AS epochs,
    n.topic_id AS topic_id,
    n.partition AS partition,
    n.subjects AS subjects,
    n.types AS types,
    if(c.now_ms > 0, c.now_ms, latest_ms) AS now_ms
FROM newest AS n
LEFT JOIN clocks AS c ON c.topic_id = n.topic_id AND c.partition = n.partition
LEFT JOIN (SELECT collector, max(heard_ms) AS heard_ms FROM collectors_retired GROUP BY collector) AS r ON r.collector = n.collector;

-- The minutes of the last day, newest first: of how many collectors that are not retired, how many say that they have sent
-- all of it, how many batches are missing in it, and whether all that was sent in time is there. For foreign events the
-- least log clock speaks, without their delay.
CREATE VIEW IF NOT EXISTS completeness_minute AS
WITH
    (SELECT groupArray(toUnixTimestamp64Micro(watermark)) FROM collectors WHERE state != 'retired' AND toUnixTimestamp64Micro(watermark) > 0) AS marks,
    (
        SELECT min(now_ms) FROM
        (
            SELECT max(reached_clock_ms) AS now_ms, max(reached_booking) AS booking
            FROM progress WHERE generation = 0 GROUP BY topic_id, partition
        )
        WHERE booking < 4294967295
    ) AS clock_ms,
    (SELECT groupArray((toUnixTimestamp(after), toUnixTimestamp(before), last - first + 1)) FROM collector_gaps) AS holes
SELECT
    toDateTime((intDiv(clock_ms, 60000) - number) * 60, 'UTC') AS minute,
    length(marks) AS collectors,
    arrayCount(mark -> mark >= (toUnixTimestamp(minute) + 60) * 1000000, marks) AS passed,
    arraySum(hole -> if(hole.1 < toUnixTimestamp(minute) + 60 AND hole.2 >= toUnixTimestamp(minute), hole.3, 0), holes) AS missing_batches,
    collectors = passed AND missing_batches = 0 AND toUInt64(toUnixTimestamp(minute) + 60) * 1000 <= clock_ms AS complete
FROM numbers(1440);
