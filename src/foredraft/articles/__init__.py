"""One folder per article: its experiment, its plots, what it records; and what a run writes."""
