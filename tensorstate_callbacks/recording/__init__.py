"""One evaluation pass, whatever the framework."""
