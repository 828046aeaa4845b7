"""What a run tells to people: a page of it, and a live view in the terminal."""
