"""What runs on a board: models, pipelines, commands, updates, peers. The loop goes on without the uplink."""

from importlib.metadata import version

__version__ = version("shoal")
