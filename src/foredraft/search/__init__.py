"""Search for the branches to skip: spaces, trials, Bayesian optimisation, baselines, engines."""
