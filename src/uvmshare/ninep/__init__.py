"""Sans-IO 9P2000.L: bytes to messages and back, and nothing else. No sockets, no files."""
