"""Divide the table of benchmarks/RESULTS.md over docs/benchmarks.md as the site is built."""
