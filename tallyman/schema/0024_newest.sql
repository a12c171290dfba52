-- progress has a row for each chunk that was ever booked. Which of its granules hold the end of a partition says an index.
ALTER TABLE progress ADD INDEX IF NOT EXISTS ends reached_booking TYPE minmax GRANULARITY 1;

ALTER TABLE progress MATERIALIZE INDEX ends;

-- The furthest of each partition: largest of what progress says, so that writing it again changes nothing. For who looks at
-- clocks and offsets now and then; where booking goes on, and what has ended, only progress itself says.
CREATE TABLE IF NOT EXISTS progress_newest
(
    topic_id LowCardinality(String),
    partition UInt32,
    reached_offset SimpleAggregateFunction(max, UInt64),
    reached_clock_ms SimpleAggregateFunction(max, UInt64)
)
ENGINE = AggregatingMergeTree
ORDER BY (topic_id, partition);

CREATE MATERIALIZED VIEW IF NOT EXISTS progress_to_newest TO progress_newest AS
SELECT topic_id, partition, reached_offset, reached_clock_ms
FROM progress
WHERE generation = 0;

INSERT INTO progress_newest
SELECT topic_id, partition, max(reached_offset), max(reached_clock_ms)
FROM progress
WHERE generation = 0
GROUP BY topic_id, partition;

-- The log clock of each partition whose topic goes on: neither ended nor abandoned.
CREATE VIEW IF NOT EXISTS clocks AS
SELECT topic_id, partition, max(reached_clock_ms) AS now_ms
FROM progress_newest
WHERE topic_id NOT IN (SELECT topic_id FROM topics_abandoned)
    AND (topic_id, partition) NOT IN (SELECT topic_id, partition FROM progress WHERE reached_booking = 4294967295)
GROUP BY topic_id, partition;

-- Each collector by its newest epoch, as in 0019_lines.
CREATE OR REPLACE VIEW collectors AS
WITH
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

-- The minutes of the last day, as in 0013_heard.
CREATE OR REPLACE VIEW completeness_minute AS
WITH
    (SELECT groupArray(toUnixTimestamp64Micro(watermark)) FROM collectors WHERE state != 'retired' AND toUnixTimestamp64Micro(watermark) > 0) AS marks,
    (SELECT min(now_ms) FROM clocks) AS clock_ms,
    (SELECT groupArray((toUnixTimestamp(after), toUnixTimestamp(before), last - first + 1)) FROM collector_gaps) AS holes
SELECT
    toDateTime((intDiv(clock_ms, 60000) - number) * 60, 'UTC') AS minute,
    length(marks) AS collectors,
    arrayCount(mark -> mark >= (toUnixTimestamp(minute) + 60) * 1000000, marks) AS passed,
    arraySum(hole -> if(hole.1 < toUnixTimestamp(minute) + 60 AND hole.2 >= toUnixTimestamp(minute), hole.3, 0), holes) AS missing_batches,
    collectors = passed AND missing_batches = 0 AND toUInt64(toUnixTimestamp(minute) + 60) * 1000 <= clock_ms AS complete
FROM numbers(1440);
