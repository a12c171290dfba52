-- The definitions that the first topic of a line begins by, where other topics were booked before: those in force when it was
-- met first. 0: definitions 1, as for topics that were met before this was noted.
ALTER TABLE topics ADD COLUMN IF NOT EXISTS begins_definitions UInt32 DEFAULT 0 AFTER begins;
