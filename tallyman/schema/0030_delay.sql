-- What of the project's settings views need: each by its name, the newest value counts.
CREATE TABLE IF NOT EXISTS settings_told
(
    name LowCardinality(String),
    value Int64,
    told_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(told_at)
ORDER BY name;

-- The minutes of the last 35 days, by the least log clock, and whether all of each has come: every partition has passed it by
-- the expected delay of events, every collector has said so, no numbered batch is missing, and no repair skipped records
-- that were appended then. Collectors are counted by the minute that they have come to, of which there are fewer.
CREATE OR REPLACE VIEW completeness_minute AS
WITH
    (
        SELECT groupArray((come_to, many))
        FROM
        (
            SELECT intDiv(toUnixTimestamp64Micro(watermark), 60000000) AS come_to, count() AS many
            FROM collectors
            WHERE state != 'retired' AND toUnixTimestamp64Micro(watermark) > 0
            GROUP BY come_to
        )
    ) AS marks,
    (SELECT (min(now_ms), count()) FROM clocks) AS clock,
    (
        SELECT sum(partitions)
        FROM topics FINAL
        WHERE topic_id NOT IN (SELECT topic_id FROM topics_abandoned) AND topic_id NOT IN (SELECT follows FROM topics)
    ) AS expected,
    (SELECT if(count() = 0, 10000, argMax(value, told_at)) FROM settings_told WHERE name = 'usage.expected_delay_ms') AS delay_ms,
    (SELECT groupArray((toUnixTimestamp(after), toUnixTimestamp(before), last - first + 1)) FROM collector_gaps) AS holes,
    (
        SELECT groupArray((from_clock_ms, to_clock_ms))
        FROM
        (
            SELECT from_clock_ms, to_clock_ms FROM repairs FINAL WHERE to_offset > from_offset
            UNION ALL
            SELECT from_clock_ms, to_clock_ms FROM late_lost FINAL WHERE to_offset > from_offset
        )
    ) AS skipped
SELECT
    toDateTime((intDiv(clock.1, 60000) - number) * 60, 'UTC') AS minute,
    arraySum(marks.2) AS collectors,
    if(
        arrayMin(marks.1) > intDiv(toUnixTimestamp(minute), 60),
        collectors,
        arraySum((come_to, many) -> if(come_to > intDiv(toUnixTimestamp(minute), 60), many, 0), marks.1, marks.2)
    ) AS passed,
    arraySum(hole -> if(hole.1 < toUnixTimestamp(minute) + 60 AND hole.2 >= toUnixTimestamp(minute), hole.3, 0), holes) AS missing_batches,
    passed = collectors
        AND missing_batches = 0
        AND NOT repaired
        AND clock.2 >= expected
        AND toUInt64(toUnixTimestamp(minute) + 60) * 1000 + delay_ms <= clock.1 AS complete,
    arrayExists(each -> each.1 < (toUnixTimestamp(minute) + 60) * 1000 AND each.2 >= toUnixTimestamp(minute) * 1000, skipped) AS repaired
FROM numbers(50400);
