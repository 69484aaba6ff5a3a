"""One turn of the offline job: learn from what was served, compare, decide, publish."""
