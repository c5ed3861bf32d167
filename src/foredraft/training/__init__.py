"""The corpus and the loops that train the pocket models."""
