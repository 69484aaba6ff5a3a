"""Releases and their chain in a repository: written, rolled out to servers, kept in step with a store."""
