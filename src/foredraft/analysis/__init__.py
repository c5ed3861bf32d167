"""What several articles compute from tables: intervals, acceptance, speed-ups."""
