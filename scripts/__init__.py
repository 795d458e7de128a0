"""What `make` runs that is written in Python."""
