"""Article 05: the target's confidence decides whether to draft."""
