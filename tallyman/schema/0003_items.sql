-- What a value is counted under besides its series and minute, one more part of a row's key: the distinct value of a
-- unique_count ("=" before it), the scaled value of a percentile or a stddev, and [time in microseconds, resource,
-- incarnation] as JSON for what needs order (first, time_weighted, lifecycle, counter). Empty for what adds up.
-- parameters: what a reader must know besides aggregation and scale, as JSON (percentile, bucket, level, answer, of,
-- believed_for_s, factor); the newest definitions' parameters decide. count is signed: a voided event takes its one back.
ALTER TABLE usage_hot
    ADD COLUMN IF NOT EXISTS item String AFTER generation,
    ADD COLUMN IF NOT EXISTS parameters LowCardinality(String) AFTER scale,
    MODIFY ORDER BY (meter, subject, dimensions, minute, booking, definitions, topic_id, partition, chunk, generation, item);
ALTER TABLE usage_hot MODIFY COLUMN count Int64;

ALTER TABLE usage
    ADD COLUMN IF NOT EXISTS item String AFTER generation,
    ADD COLUMN IF NOT EXISTS parameters LowCardinality(String) AFTER scale,
    MODIFY ORDER BY (meter, subject, dimensions, minute, booking, definitions, generation, item);
ALTER TABLE usage MODIFY COLUMN count Int64;

-- All usage with its booking: sealed bookings from usage, later ones from usage_hot. Rows of zombies below the seal stay invisible.
CREATE OR REPLACE VIEW usage_booked AS
SELECT
    meter, subject, dimensions, minute, item, booking, definitions, aggregation, scale, parameters, count, sum, min, max,
    latest, latest_us, latest_by
FROM usage
WHERE generation = 0 AND booking <= (SELECT max(booking) FROM seals)
UNION ALL
SELECT
    meter, subject, dimensions, minute, item, booking, definitions, aggregation, scale, parameters, count, sum, min, max,
    latest, latest_us, latest_by
FROM usage_hot FINAL
WHERE generation = 0 AND booking > (SELECT max(booking) FROM seals);

-- One row for each series and minute of the meters that add up, value as an exact decimal in the meter's unit
-- (an average is cut off behind 18 digits). The newest definitions say which aggregation a meter is.
CREATE OR REPLACE VIEW usage_minute AS
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
WHERE b.aggregation IN ('sum', 'count', 'avg', 'min', 'max', 'latest')
GROUP BY meter, subject, dimensions, minute;
