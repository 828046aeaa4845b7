"""What a machine gives for a config: of its data alone, and of whole steps of training."""
