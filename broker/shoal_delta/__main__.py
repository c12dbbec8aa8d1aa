"""`python -m shoal_delta`: the same as `shoal-delta`."""

from shoal_delta.cli import main

if __name__ == "__main__":
    main()
