"""`python -m memmod`: the console command, for launchers that start modules, such as torchrun."""

from memmod.cli.main import main

if __name__ == "__main__":
    main()
