"""Figures: their style and files, panels that move, tokens by status."""
