-- The view of minutes; new: a percentile that a definition spells in a way that ClickHouse cannot read breaks nothing for
-- other meters. Spaces and underscores, as in "9_5", are passed over; where it is no number even so (digits of another
-- script) the meter's minutes are not shown, and answers have them. No meter's file may say such a thing any more.
-- One row for each series and minute, for every aggregation whose value of a minute follows from that minute alone; value
-- is an exact decimal in the meter's unit, cut off behind 18 digits. Where late usage brought rows of another aggregation
-- into a minute, they tell the newest one nothing that it does not read. The newest definitions that booked into the
-- minute say which aggregation a meter is, and by what its minute is converted: a minute with sums under two conversions
-- is exact in answers only (decision 0055), since to keep them apart would cost all others four times their time. A
-- sum_of_maxima shows the minute's maximum. Nothing is rounded: a meter's rounding is for whole answers. Not here: stddev
-- (ClickHouse has no exact square root), and what needs the order of readings (time_weighted, lifecycle, counter:
-- usage_points).
-- First what adds up; then what is kept under items, whose arrays would cost the former many times its time: a minute in
-- which a meter was booked as one of those and as one of these has a row of each.
CREATE OR REPLACE VIEW usage_minute AS
SELECT
    meter, subject, dimensions, minute, events, aggregation, sum_atto, min_atto, max_atto, latest_atto,
    -- atto x 10^-18: a division of decimals costs fifty times as much as one of integers.
    toDecimal256(
        intDiv(
            multiIf(
                aggregation IN ('sum', 'avg'), sum_atto,
                aggregation = 'min', min_atto,
                aggregation IN ('max', 'sum_of_maxima'), max_atto,
                aggregation = 'latest', latest_atto,
                toInt256(events) * toInt256(1000000000000000000)) * toInt256(factor[1]),
            multiIf(aggregation = 'avg', toInt256(events), toInt256(1)) * toInt256(factor[2]))
        + intDiv(toInt256(if(aggregation = 'sum', events, 1)) * toInt256(offset[1]) * toInt256(1000000000000000000), toInt256(offset[2])),
        0) * toDecimal256('0.000000000000000001', 18) AS value
FROM
(
    SELECT
        meter, subject, dimensions, minute,
        sum(b.count) AS events,
        argMax(b.aggregation, b.definitions) AS aggregation,
        splitByChar('/', coalesce(nullIf(JSONExtractString(argMax(b.parameters, b.definitions), 'factor'), ''), '1/1')) AS factor,
        splitByChar('/', coalesce(nullIf(JSONExtractString(argMax(b.parameters, b.definitions), 'offset'), ''), '0/1')) AS offset,
        -- Of a count a row's sum is one for each event, whatever the meter's scale is.
        sum(if(b.aggregation = 'count', toInt256(b.count), toInt256(b.sum))
            * toInt256(intExp10(if(b.aggregation = 'count', 18, 18 - b.scale)))) AS sum_atto,
        minIf(toInt256(b.min) * toInt256(intExp10(18 - b.scale)), b.aggregation = 'min') AS min_atto,
        maxIf(toInt256(b.max) * toInt256(intExp10(18 - b.scale)), b.aggregation IN ('max', 'sum_of_maxima')) AS max_atto,
        argMaxIf(toInt256(b.latest) * toInt256(intExp10(18 - b.scale)), (b.latest_us, b.latest_by), b.aggregation = 'latest')
            AS latest_atto
    FROM usage_booked AS b
    WHERE b.aggregation IN ('sum', 'count', 'avg', 'min', 'max', 'latest', 'sum_of_maxima')
    GROUP BY meter, subject, dimensions, minute
    HAVING events != 0
)
UNION ALL
SELECT
    meter, subject, dimensions, minute, events, aggregation, sum_atto, toInt256(0), toInt256(0), toInt256(0),
    toDecimal256(
        intDiv(
            multiIf(
                aggregation = 'first', first_atto,
                aggregation = 'percentile', percentile_atto,
                toInt256(length(there)) * atto) * toInt256(factor[1]),
            toInt256(factor[2]))
        + intDiv(toInt256(offset[1]) * atto, toInt256(offset[2])),
        0) * toDecimal256('0.000000000000000001', 18) AS value
FROM
(
    SELECT
        *,
        arrayFilter(c -> c.6 = aggregation, all_cells) AS cells,
        arraySum(c -> c.2, cells) AS events,
        toInt256(1000000000000000000) AS atto,
        splitByChar('/', coalesce(nullIf(JSONExtractString(parameters, 'factor'), ''), '1/1')) AS factor,
        splitByChar('/', coalesce(nullIf(JSONExtractString(parameters, 'offset'), ''), '0/1')) AS offset,
        -- Items whose events were not all voided.
        arrayReduce('sumMap', arrayMap(c -> [c.1], cells), arrayMap(c -> [c.2], cells)) AS counted,
        arrayFilter((item, n) -> n > 0, counted.1, counted.2) AS there,
        -- The earliest reading; of several at one time the largest identity's.
        arrayReverseSort(c -> (-c.4, c.5), arrayFilter(c -> c.2 > 0 AND has(there, c.1), cells))[1].3 AS first_atto,
        -- The value at rank (n - 1) * percentile / 100, from 0, between the two closest ones.
        arraySort(c -> c.1, arrayMap((item, n) -> (toInt256OrZero(item), n), there, arrayFilter(n -> n > 0, counted.2))) AS ranked,
        arrayCumSum(c -> c.2, ranked) AS ranks,
        coalesce(nullIf(replaceRegexpAll(JSONExtractString(parameters, 'percentile'), '[ \\t\\r\\n_]', ''), ''), '0') AS percentile,
        toInt256(toDecimal256OrZero(percentile, 18) * toDecimal256('1000000000000000000', 0)) AS share,
        toInt256(greatest(arraySum(c -> c.2, ranked) - 1, 0)) * share AS place,
        intDiv(place, 100 * atto) AS below,
        ranked[arrayFirstIndex(n -> n > below, ranks)].1 AS low,
        ranked[arrayFirstIndex(n -> n > below + 1, ranks)].1 AS above,
        if(arrayExists(n -> n > below + 1, ranks), above, low) AS high,
        low + intDiv((high - low) * (place - below * 100 * atto), 100 * atto) AS percentile_atto
    FROM
    (
        SELECT
            meter, subject, dimensions, minute,
            argMax(b.aggregation, b.definitions) AS aggregation,
            argMax(b.parameters, b.definitions) AS parameters,
            sum(toInt256(b.sum) * toInt256(intExp10(18 - b.scale))) AS sum_atto,
            groupArray((
                -- Numbers as atto, so that a meter's scale may change.
                if(b.aggregation = 'percentile', toString(toInt256OrZero(b.item) * toInt256(intExp10(18 - b.scale))), b.item),
                b.count,
                toInt256(b.latest) * toInt256(intExp10(18 - b.scale)),
                b.latest_us,
                b.latest_by,
                b.aggregation
            )) AS all_cells
        FROM usage_booked AS b
        WHERE b.aggregation IN ('first', 'unique_count', 'percentile')
        GROUP BY meter, subject, dimensions, minute
    )
    WHERE events != 0 AND isNotNull(toDecimal256OrNull(percentile, 18))
);
