"""The push queue: what is to be sent, in whose turn, and what became of it."""
