"""The command line: `foredraft --help`."""
