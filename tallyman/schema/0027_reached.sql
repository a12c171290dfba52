-- What a view kept up to now with each flush cost a small part each time, which is more than asking costs now and then.
DROP VIEW IF EXISTS progress_to_newest;

-- How far each partition is booked, also where its topic has ended: as the newest seal says, or further. Of progress only what
-- was booked since counts. Holes are not looked for: where booking goes on, only progress itself says.
CREATE OR REPLACE VIEW reached AS
WITH
    (
        SELECT JSONExtract(argMax(places, (booking, sealed_at)), 'Array(Tuple(topic_id String, partition UInt32, chunk UInt64, offset UInt64, clock_ms UInt64))')
        FROM seals
    ) AS places
SELECT topic_id, partition, max(offset) AS offset, max(clock_ms) AS clock_ms
FROM
(
    SELECT place.1 AS topic_id, place.2 AS partition, place.4 AS offset, place.5 AS clock_ms
    FROM (SELECT arrayJoin(places) AS place)
    UNION ALL
    SELECT topic_id, partition, reached_offset, reached_clock_ms
    FROM progress
    WHERE generation = 0
        AND (chunk >= arrayMin(place -> place.3, places) OR topic_id NOT IN (SELECT arrayJoin(places).1))
)
GROUP BY topic_id, partition;

-- The log clock of each partition whose topic goes on: neither ended nor abandoned.
CREATE OR REPLACE VIEW clocks AS
SELECT topic_id, partition, clock_ms AS now_ms
FROM reached
WHERE topic_id NOT IN (SELECT topic_id FROM topics_abandoned)
    AND (topic_id, partition) NOT IN (SELECT topic_id, partition FROM progress WHERE reached_booking = 4294967295);

DROP TABLE IF EXISTS progress_newest;
