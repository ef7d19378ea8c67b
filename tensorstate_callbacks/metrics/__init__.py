"""Numbers in, numbers out: entropy, efficiency, aIQ, estimates and intervals."""
