"""Run folders, and what the commands do with them."""
