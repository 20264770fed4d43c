"""What we add to spa."""
