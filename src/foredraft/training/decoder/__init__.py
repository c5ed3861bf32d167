"""The training of the pocket decoders."""
