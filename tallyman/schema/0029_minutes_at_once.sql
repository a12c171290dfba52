-- The view of minutes; new: usage_booked is read once, not once for what adds up and once more for what is kept under items.
-- To plan the view took nine tenths of a small answer's time, most of it twice (decision 0084).
-- One row for each series and minute, for every aggregation whose value of a minute follows from that minute alone; value
-- is an exact decimal in the meter's unit, cut off behind 18 digits. Where late usage brought rows of another aggregation
-- into a minute, they tell the newest one nothing that it does not read. The newest definitions that booked into the
-- minute say which aggregation a meter is, and by what its minute is converted: a minute with sums under two conversions
-- is exact in answers only (decision 0055), since to keep them apart would cost all others four times their time. A
-- sum_of_maxima shows the minute's maximum. Nothing is rounded: a meter's rounding is for whole answers. Not here: stddev
-- (ClickHouse has no exact square root), and what needs the order of readings (time_weighted, lifecycle, counter:
-- usage_points). A percentile that a definition spells in a way that ClickHouse cannot read is not shown.
-- by_item: what is kept under items, as first, unique_count and percentile; else what adds up. A minute in which a meter was
-- booked as one of those and as one of these has a row of each.
CREATE OR REPLACE VIEW usage_minute AS
SELECT
    meter, subject, dimensions, minute, events, aggregation, sum_atto, min_atto, max_atto, latest_atto,
    -- atto x 10^-18: a division of decimals costs fifty times as much as one of integers.
    toDecimal256(
        intDiv(
            (multiIf(
                aggregation IN ('sum', 'avg'), sum_atto,
                aggregation = 'min', min_atto,
                aggregation IN ('max', 'sum_of_maxima'), max_atto,
                aggregation = 'latest', latest_atto,
                aggregation = 'first', first_atto,
                aggregation = 'percentile', toInt256(0),
                toInt256(if(aggregation = 'count', events, toInt64(length(there)))) * atto) + at_share) * toInt256(factor[1]),
            if(aggregation = 'avg', toInt256(events), toInt256(1)) * toInt256(factor[2]))
        + intDiv(toInt256(if(aggregation = 'sum', events, 1)) * toInt256(offset[1]) * atto, toInt256(offset[2])),
        0) * toDecimal256('0.000000000000000001', 18) AS value
-- Each step names what the ones around it read.
FROM
(
    SELECT
        *,
        splitByChar('/', if(empty(told.factor), '1/1', told.factor)) AS factor,
        splitByChar('/', if(empty(told.offset), '0/1', told.offset)) AS offset,
        -- The two closest values to the place: of as many as lie up to each, one more than below, and one more than that.
        ranked[at].1 AS low,
        ranked[if(ranks[at] > below + 1 OR at = length(ranked), at, at + 1)].1 AS high,
        low + intDiv((high - low) * (place - below * hundred), hundred) AS at_share
    FROM
    (
        SELECT *, arrayFirstIndex(n -> n > below, ranks) AS at
        FROM
        (
            SELECT *, intDiv(place, hundred) AS below
            FROM
            (
                SELECT
                    *,
                    arrayCumSum(c -> c.2, ranked) AS ranks,
                    -- Rank (n - 1) * percentile / 100, from 0, in hundredths of an atto.
                    toInt256(greatest(arraySum(c -> c.2, ranked) - 1, 0))
                        * toInt256(assumeNotNull(percentile) * toDecimal256('1000000000000000000', 0)) AS place
                FROM
                (
                    SELECT
                        *,
                        toInt256('1000000000000000000') AS atto,
                        toInt256('100000000000000000000') AS hundred,
                        -- Readings behind the mark of their item, if it is there: to look for each among all the others would take
                        -- time and memory as the square of how many there are.
                        if(aggregation = 'first',
                            arraySort(c -> (c.1, c.2), arrayConcat(
                                arrayMap(c -> (c.1, toInt64(0), toInt256(0), toInt64(0), toFixedString('', 16)), there),
                                arrayMap(c -> (c.1, c.2, c.3, c.4, c.5), arrayFilter(c -> c.2 > 0, cells)))),
                            []) AS marked,
                        -- The earliest reading; of several at one time the largest identity's.
                        arrayReverseSort(c -> (-c.4, c.5),
                            arrayFilter((c, mark) -> c.2 > 0 AND mark.2 = 0 AND c.1 = mark.1, marked, arrayFill(c -> c.2 = 0, marked)))[1].3 AS first_atto,
                        if(aggregation = 'percentile', arraySort(c -> c.1, arrayMap(c -> (toInt256OrZero(c.1), c.2), there)), []) AS ranked
                    FROM
                    (
                        -- Items whose events were not all voided.
                        SELECT *, arrayFilter(c -> c.2 > 0, arrayZip(counted.1, counted.2)) AS there
                        FROM
                        (
                            SELECT
                                * EXCEPT added,
                                if(by_item, arraySum(c -> c.2, cells), added) AS events,
                                -- Spaces and underscores, as in "9_5", are passed over.
                                toDecimal256OrNull(
                                    if(empty(told.percentile), '0', replaceRegexpAll(told.percentile, '[ \\t\\r\\n_]', '')),
                                    18) AS percentile,
                                arrayReduce('sumMap', arrayMap(c -> [c.1], cells), arrayMap(c -> [c.2], cells)) AS counted
                            FROM
                            (
                                SELECT
                                    * EXCEPT all_cells,
                                    JSONExtract(parameters, 'Tuple(factor String, offset String, percentile String)') AS told,
                                    arrayFilter(c -> c.6 = aggregation, all_cells) AS cells
                                FROM
                                (
                                    SELECT
                                        meter, subject, dimensions, minute,
                                        b.aggregation IN ('first', 'unique_count', 'percentile') AS by_item,
                                        sum(b.count) AS added,
                                        argMax(b.aggregation, b.definitions) AS aggregation,
                                        argMax(b.parameters, b.definitions) AS parameters,
                                        -- Of a count a row's sum is one for each event, whatever the meter's scale is.
                                        sum(if(b.aggregation = 'count', toInt256(b.count), toInt256(b.sum))
                                            * toInt256(intExp10(if(b.aggregation = 'count', 18, 18 - b.scale)))) AS sum_atto,
                                        minIf(toInt256(b.min) * toInt256(intExp10(18 - b.scale)), b.aggregation = 'min') AS min_atto,
                                        maxIf(toInt256(b.max) * toInt256(intExp10(18 - b.scale)),
                                            b.aggregation IN ('max', 'sum_of_maxima')) AS max_atto,
                                        argMaxIf(toInt256(b.latest) * toInt256(intExp10(18 - b.scale)), (b.latest_us, b.latest_by),
                                            b.aggregation = 'latest') AS latest_atto,
                                        groupArrayIf((
                                            -- Numbers as atto, so that a meter's scale may change.
                                            if(b.aggregation = 'percentile',
                                                toString(toInt256OrZero(b.item) * toInt256(intExp10(18 - b.scale))), b.item),
                                            b.count,
                                            toInt256(b.latest) * toInt256(intExp10(18 - b.scale)),
                                            b.latest_us,
                                            b.latest_by,
                                            b.aggregation
                                        ), by_item) AS all_cells
                                    FROM usage_booked AS b
                                    WHERE b.aggregation IN ('sum', 'count', 'avg', 'min', 'max', 'latest', 'sum_of_maxima',
                                        'first', 'unique_count', 'percentile')
                                    GROUP BY meter, subject, dimensions, minute, by_item
                                )
                            )
                        )
                        WHERE events != 0 AND (NOT by_item OR isNotNull(percentile))
                    )
                )
            )
        )
    )
);
