"""What is said on the wire: shapes, errors, operations, costs and the texts in them."""
