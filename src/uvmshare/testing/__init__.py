"""What ships for tests, the users own included: fakes, a 9P client, a harness of guests."""
