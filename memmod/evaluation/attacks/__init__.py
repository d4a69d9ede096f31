"""Attacks on a network that should have forgotten, one a file, behind the one interface of `attack`."""
