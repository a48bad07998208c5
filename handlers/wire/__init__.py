"""The wire format: shapes, errors, operations, costs, and checks of texts."""
