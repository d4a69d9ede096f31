"""A server that forgets other classes for every request: its parts, from the process that computes to the routes."""
