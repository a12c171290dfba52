-- What heard says of sealed bookings, runs that touch joined into one: a collector of which nothing is missing has one row for
-- each epoch, however long it sends. A row stays true for ever, as those of heard do; one that lies in a longer one says
-- nothing more.
CREATE TABLE IF NOT EXISTS heard_joined
(
    collector String,
    epoch String,
    first UInt64,
    last UInt64,
    first_watermark_us Int64,
    last_watermark_us Int64
)
ENGINE = ReplacingMergeTree(last)
ORDER BY (collector, epoch, first);

-- Up to which booking heard_joined holds all. Readers go by what stands here for ten minutes, and take later bookings from
-- heard: so what they read of the one table is never newer than what they read of the other.
CREATE TABLE IF NOT EXISTS heard_joined_to
(
    booking UInt32,
    joined_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = MergeTree
ORDER BY booking;

-- All runs, as far as they say something.
CREATE VIEW IF NOT EXISTS heard_runs AS
SELECT collector, epoch, first, last, first_watermark_us, last_watermark_us
FROM heard_joined FINAL
UNION ALL
SELECT collector, epoch, first, last, first_watermark_us, last_watermark_us
FROM heard
WHERE booking > (SELECT max(booking) FROM heard_joined_to WHERE joined_at < now64(3) - INTERVAL 10 MINUTE);

-- Sequence numbers that are missing inside an epoch, first to last; their readings lie between after and before (1970: not
-- known). What an epoch sent before it was first heard is not looked for.
CREATE OR REPLACE VIEW collector_gaps AS
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
    FROM heard_runs AS h
    WINDOW w AS (PARTITION BY collector, epoch ORDER BY h.first, h.last)
)
WHERE place > 1 AND next > reached.1 + 1;
