"""gati offline: cut a backbone, train heads, certify them, publish releases, refresh them from traffic."""
