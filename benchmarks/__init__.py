"""How fast the package is: `python -m benchmarks [part ...]` prints one table of ratios."""
