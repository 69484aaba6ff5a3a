"""The report of a release: what was learned, what is promised, and on what evidence."""
