"""Keeping the promise while the world moves: which answers are audited, what audits show, what closes heads."""
