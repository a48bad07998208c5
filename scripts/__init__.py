"""What operators run. Scripts know config and models, and nothing of the wire."""
