"""Article 04: Draft & Verify with a plan from Bayesian optimisation."""
