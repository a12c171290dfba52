-- Which partitions have ended is asked with each answer, and progress has a row for each chunk that was ever booked: the index
-- says which few of its granules hold an end.
ALTER TABLE progress ADD INDEX IF NOT EXISTS ends reached_booking TYPE minmax GRANULARITY 1;

ALTER TABLE progress MATERIALIZE INDEX ends;
