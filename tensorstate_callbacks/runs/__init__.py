"""Log folders and run ids in; the evaluations of finished runs, and what shows them, out."""
