"""Record one evaluation pass, whatever the framework."""
