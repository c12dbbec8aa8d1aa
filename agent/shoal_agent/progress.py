"""What is told of the models on a board: where each stands, what it costs, what is under way. Decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal_agent.inference.served import ModelFacts
from shoal_agent.staging import Installed
from shoal_contract.messages import ModelState, Phase

_MAX_REASON: int = 1024


@dataclass(slots=True)
class Progress:
    """What is told about a model while it changes."""

    target: bytes
    phase: Phase
    reason: str = ""
    fetched_bytes: int = 0


def model_states(
    facts: Sequence[ModelFacts],
    serving: Mapping[str, bytes],
    installed: Mapping[str, Installed],
    progress: Mapping[str, Progress],
) -> list[ModelState]:
    """Where every model stands, by name."""
    states = []
    known = {one.model: one for one in facts}
    for model in sorted({*serving, *progress}):
        release = serving.get(model, b"")
        here = installed.get(model, Installed("", b""))
        going = progress.get(model) or Progress(release, Phase.SERVING)
        states.append(
            ModelState(
                model=model,
                release=release,
                version=here.version,
                target=going.target,
                phase=going.phase,
                reason=going.reason[:_MAX_REASON],
                fetched_bytes=going.fetched_bytes,
                model_file=here.model_file,
                **_cost(known.get(model)),
            )
        )
    return states


def _cost(facts: ModelFacts | None) -> dict[str, Any]:
    """What a node tells of a model that serves: where it is, and what it took in its trial."""
    if facts is None:
        return {}
    went = facts.admission
    return {
        "residence": facts.state,
        "resident_bytes": went.resident_bytes or facts.size_bytes,
        "peak_bytes": went.peak_bytes,
        "p95_us": went.p95_us,
    }
