"""Turns a copy of a base into a modulated model, and back."""
