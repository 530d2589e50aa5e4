"""Pure functions on tables: from records to estimates, from estimates to verdicts."""
