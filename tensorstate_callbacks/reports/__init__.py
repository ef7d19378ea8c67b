"""Reports of layers and networks, their history, and the metric keys."""
