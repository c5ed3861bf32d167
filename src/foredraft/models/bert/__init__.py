"""BERT: configuration, weights, layers and heads."""
