"""`python -m memmod.cli`."""

from memmod.cli.main import main

main()
