"""Intervals and tests on small arrays; whatever scipy has is scipy's."""
