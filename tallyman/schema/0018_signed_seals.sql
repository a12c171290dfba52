-- In a booking in which more events were voided than came, fewer than none were counted.
ALTER TABLE seals MODIFY COLUMN IF EXISTS events Int64;
