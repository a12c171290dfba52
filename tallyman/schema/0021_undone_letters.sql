-- As in 0005_reconciliation, without dead letters and conflicts that no count has: those at a repair's place or behind that
-- were written before it. Their records were skipped, or were judged anew in its booking or a later one.
CREATE OR REPLACE VIEW reconciliation AS
WITH
    chunks AS
    (
        SELECT topic_id, partition, chunk, toUInt64(reached_offset - covered) AS first, reached_offset AS behind, reached_counts AS counts
        FROM progress FINAL
        WHERE generation = 0
    ),
    (SELECT groupArray((toString(topic_id), partition, from_offset, booking)) FROM repairs FINAL) AS decided
SELECT
    c.topic_id AS topic_id,
    c.partition AS partition,
    c.chunk AS chunk,
    c.first AS first,
    c.behind AS behind,
    c.counts[1] AS received,
    c.counts[2] AS aggregated,
    c.counts[3] AS duplicate,
    c.counts[4] AS dead,
    c.counts[5] AS ignored,
    c.counts[6] AS forwarded,
    c.counts[7] AS conflict,
    t.letters AS letters,
    t.conflicts AS conflicts
FROM chunks AS c
LEFT JOIN
(
    SELECT k.topic_id AS topic_id, k.partition AS partition, k.chunk AS chunk,
        countIf(l.kind = 'dead') AS letters, countIf(l.kind = 'conflict') AS conflicts
    FROM
    (
        SELECT topic_id, partition, offset, booking, 'dead' AS kind FROM dead_letters FINAL WHERE generation = 0
        UNION ALL
        SELECT topic_id, partition, offset, booking, 'conflict' AS kind FROM conflicts FINAL
    ) AS l
    ASOF INNER JOIN chunks AS k ON l.topic_id = k.topic_id AND l.partition = k.partition AND l.offset >= k.first
    WHERE l.offset < k.behind
        AND NOT arrayExists(
            each -> l.topic_id = each.1 AND l.partition = each.2 AND l.offset >= each.3 AND l.booking < each.4, decided)
    GROUP BY topic_id, partition, chunk
) AS t ON t.topic_id = c.topic_id AND t.partition = c.partition AND t.chunk = c.chunk;
