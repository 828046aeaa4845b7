"""What the folder of a run holds, for who writes it and for who only reads it."""
