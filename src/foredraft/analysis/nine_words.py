"""The nine words with their logits on which articles 01 and 02 show exact distributions."""

NINE_WORDS = ("mat", "floor", "sofa", "chair", "roof", "moon", "table", "idea", "seven")


NINE_LOGITS = (3.2, 2.6, 2.3, 1.9, 1.1, 0.2, 0.0, -1.6, -3.0)
"""A vocabulary for "the cat sat on the …", most likely word first."""
