"""One process a mount: it serves one guest's connection to one share, confined."""
