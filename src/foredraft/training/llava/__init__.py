"""The training of the pocket LLaVA, and its fine-tuning."""
