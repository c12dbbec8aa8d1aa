"""What runs on a board: models, pipelines, commands, updates, peers. The loop goes on without the uplink."""

# Not read from the installed package: importlib.metadata costs 2 MiB. A test holds the two together.
__version__ = "0.1.0"
