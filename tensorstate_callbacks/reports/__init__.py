"""What an evaluation said: reports of layers and networks, their history, the metric keys."""
