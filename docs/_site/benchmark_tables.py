"""Divide the table of benchmarks/RESULTS.md over the page of the benchmarks, as the site is built."""
