"""What ships for tests, users' own tests included: fakes, a 9P client, a harness of guests."""
