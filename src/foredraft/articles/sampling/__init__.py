"""Article 01: how logits become a distribution and a token."""
