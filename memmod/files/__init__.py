"""What is read from files and written to them: whole or not at all, checked, and sealed with hashes."""
