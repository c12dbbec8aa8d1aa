"""Where the controller keeps its part of the signed record, below its state directory."""

from pathlib import Path


def online_key_file(state_dir: Path) -> Path:
    """The key that signs snapshot and timestamp."""
    return state_dir / "trust" / "online.key"


def metadata_dir(state_dir: Path) -> Path:
    """The metadata."""
    return state_dir / "trust" / "metadata"


def published_file(state_dir: Path) -> Path:
    """What was handed to the bus, by name."""
    return state_dir / "trust" / "published.json"
