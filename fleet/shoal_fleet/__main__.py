"""`python -m shoal_fleet`: the same as the `shoal` command."""

from shoal_fleet.cli import main

if __name__ == "__main__":
    main()
