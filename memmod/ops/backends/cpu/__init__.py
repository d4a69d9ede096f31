"""The compiled CPU extension."""
