"""Article 08: vector addition as a Triton kernel."""
