"""What outlives a supervisor: the run directory, its table of shares and its locks."""
