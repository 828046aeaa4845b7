"""What a run's encoders make of samples, as pictures."""
