"""Rules decide: when an alarm fires, and what a quantity costs."""
