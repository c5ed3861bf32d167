"""Article 02: a draft model proposes, the target verifies."""
