"""The hot path: requests in, bytes through, facts out."""
