"""The subcommands of `gati` that run offline: options in, one of this package's functions, a table out."""
