-- What each generation in force covers stands in the list itself, in the list's order: readers, who take it before every
-- answer, need no other table for it.
ALTER TABLE switches
    ADD COLUMN IF NOT EXISTS entries Array(Tuple(
        generation UInt32,
        definitions UInt32,
        meters Array(String),
        first_minute DateTime('UTC'),
        end_minute DateTime('UTC'),
        last_booking UInt32)) AFTER generations;

-- The list that is in force, written once more with them.
INSERT INTO switches (switched, generations, entries)
SELECT
    any(l.switched),
    any(l.listed),
    arrayMap(
        each -> each.2,
        arraySort(
            each -> each.1,
            groupArray((indexOf(l.listed, r.generation),
                (r.generation, r.definitions, r.meters, r.first_minute, r.end_minute, r.last_booking)))))
FROM (SELECT * FROM rebuilds FINAL) AS r
CROSS JOIN (SELECT max(s.switched) AS switched, argMax(s.generations, s.switched) AS listed FROM switches AS s) AS l
WHERE has(l.listed, r.generation)
HAVING count() > 0;

-- All usage with its booking: sealed bookings from usage, later ones from usage_hot, and rebuilt rows instead of those
-- that a generation in force covers: of several the last in the list. The list is read once, for all three.
CREATE OR REPLACE VIEW usage_booked AS
WITH (SELECT argMax(entries, (switched, switched_at)) FROM switches) AS in_force
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
            each -> has(each.3, meter) AND minute >= each.4 AND minute < each.5 AND booking <= each.6,
            in_force),
        1));
