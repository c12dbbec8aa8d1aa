"""What the dispatcher needs of a worker, be it a process of its own or a thread of the agent."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from shoal_agent.inference.batch import Batch, Loaded, Ran
from shoal_agent.inference.errors import InferenceError
from shoal_agent.inference.signature import Signature

Done = Callable[[Ran | InferenceError], None]
"""Told once how a batch went."""


class CallRefusedError(Exception):
    """The worker is well but says no: the release breaks a promise; the message is its reason."""


class Worker(Protocol):
    """Loads releases and runs batches, two at most under way. `lost` says why it cannot be used any more."""

    loaded: dict[bytes, Signature]
    lost: str | None

    async def load(
        self,
        release: bytes,
        directory: Path,
        *,
        trial_bytes: int = 0,
        calibrate_rows: int = 0,
        timeout_s: float,
    ) -> Loaded:
        """Load and check a release directory.

        Args:
            release: how `run` names it.
            directory: holds release.toml, model and golden file.
            trial_bytes: more than 0: measure it, and let the process grow by at most so much.
            calibrate_rows: the largest batch to measure; 0: none.
            timeout_s: after it, the worker is lost.

        Raises:
            CallRefusedError: the release breaks a promise.
            WorkerLostError: the worker died of it, or took too long.
        """

    async def unload(self, release: bytes) -> None:
        """Forget a release and give its memory back."""

    def start(self, release: bytes, batch: Batch, done: Done, *, timeout_s: float) -> None:
        """Run one batch. `done` is called once, later, with its outputs or with an error.

        BadInputError: the batch, or something in it, does not fit the model.
        LateBatchError: it took longer than the settings allow, and was stopped.
        ModelFailedError: the model or the runtime failed at it.
        WorkerLostError: the worker died, hung (for `timeout_s`) or spoke nonsense.
        """
