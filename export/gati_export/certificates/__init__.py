"""The promise of a release: which samples may tell what, and what they show."""
