"""How a number travels: parameters, provenance, recordings, results, the pipeline, citing."""
