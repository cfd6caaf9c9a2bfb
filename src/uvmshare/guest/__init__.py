"""What runs inside a guest: stdlib-only files that import nothing of the rest, because they are copied there."""
