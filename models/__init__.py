"""The tables, and the statements that read and change them. Nothing here depends on the wire or a feature."""
