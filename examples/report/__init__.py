"""The page that the demo leaves behind: usage as small charts, the alarm's history, the invoices."""
