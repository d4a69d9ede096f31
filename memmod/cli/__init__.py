"""The command line: `memmod`, or `python -m memmod.cli`."""
