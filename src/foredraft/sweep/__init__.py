"""A sweep: an article's notebook under many settings, each kept as soon as it is done."""
