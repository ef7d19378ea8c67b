"""Count firing states: the counter, packed states, their spectrum."""
