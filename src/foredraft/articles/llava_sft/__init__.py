"""Article 06: a vision-language model is fine-tuned to read tables."""
