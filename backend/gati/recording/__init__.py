"""Samples of what was served: what is kept of a request, shards, and the folders that hold them."""
