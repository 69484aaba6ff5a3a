"""What a model repository holds: chains, releases, what a release is checked for, and who may change it."""
