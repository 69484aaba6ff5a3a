"""Samples: read from files or a store, batched, and run through a backbone."""
