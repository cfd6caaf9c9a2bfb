"""What shares and mounts have in common: who holds one, what becomes of it, what is under way, what is tried again."""
