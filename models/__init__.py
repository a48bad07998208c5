"""The tables: what is stored, and the statements that read and change it. Nothing here knows the wire or a feature."""
