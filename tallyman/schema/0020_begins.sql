-- The booking that the first topic of a line begins in, where other topics were booked before: behind all that may be
-- sealed of them. 0: in that of its first record.
ALTER TABLE topics ADD COLUMN IF NOT EXISTS begins UInt32 DEFAULT 0 AFTER line;
