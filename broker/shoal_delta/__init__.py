"""The differential format for INT8 models: build a delta, look into it, apply it. Usable alone.

It knows files and bytes; it fetches nothing, decides nothing, and imports no other Shoal package.
"""

from shoal_delta.apply import apply, apply_file
from shoal_delta.bases import Estimate, Update, UpdatePlan, Way, estimate, plan_updates
from shoal_delta.encode import diff
from shoal_delta.errors import (
    CorruptDeltaError,
    DeltaError,
    EncodeError,
    LimitError,
    StorageError,
    UnknownVersionError,
    WrongBaseError,
)
from shoal_delta.inspection import Info, SegmentInfo, StreamInfo, TensorInfo, inspect

__all__ = [
    "CorruptDeltaError",
    "DeltaError",
    "EncodeError",
    "Estimate",
    "Info",
    "LimitError",
    "SegmentInfo",
    "StorageError",
    "StreamInfo",
    "TensorInfo",
    "UnknownVersionError",
    "Update",
    "UpdatePlan",
    "Way",
    "WrongBaseError",
    "apply",
    "apply_file",
    "diff",
    "estimate",
    "inspect",
    "plan_updates",
]
