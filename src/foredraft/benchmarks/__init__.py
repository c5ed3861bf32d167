"""What `foredraft bench` and `foredraft record` measure, on the clock of `benchmarks.timing`."""
