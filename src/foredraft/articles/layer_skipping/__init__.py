"""Article 03: a model drafts for itself with some of its branches switched off."""
