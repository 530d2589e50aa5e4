"""``litmus ab``: two revisions of the suites and of what they import, measured by this harness in step."""
