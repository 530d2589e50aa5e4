"""What an author writes: cards (data) and suites (short functions)."""
