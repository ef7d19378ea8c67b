"""Tables and plots of anything that has the view protocol."""
