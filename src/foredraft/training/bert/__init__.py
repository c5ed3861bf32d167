"""The training of the pocket BERT."""
