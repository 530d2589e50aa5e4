"""Benchmarks for asv: the smoke points of every suite's speed experiments, proved and measured by Litmus itself."""
