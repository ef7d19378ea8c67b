"""Bring together what several processes counted."""
