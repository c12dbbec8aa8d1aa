"""What runs where, as one table: a row a node and model, wanted or there. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from shoal_contract.messages import Phase
from shoal_fleet.registry import Node


def running(
    nodes: Iterable[Node],
    wanted: Mapping[tuple[str, str], bytes],
    titles: Mapping[bytes, str],
) -> list[dict[str, Any]]:
    """The rows by node and model.

    Args:
        nodes: whose rows.
        wanted: (node, model) -> release.
        titles: release -> name@version.
    """
    models: dict[str, list[str]] = {}
    for name, model in wanted:
        models.setdefault(name, []).append(model)
    rows = []
    for node in sorted(nodes, key=lambda node: node.name):
        reported = {} if node.reported is None else {s.model: s for s in node.reported.models}
        for model in sorted({*models.get(node.name, ()), *reported}):
            state = reported.get(model)
            release = wanted.get((node.name, model))
            serves = state is not None and state.phase is Phase.SERVING
            rows.append(
                {
                    "node": node.name,
                    "online": node.online,
                    "hardware": node.kind,
                    "site": node.labels.get("site", ""),
                    "model": model,
                    "version": state.version if state is not None else "",
                    "phase": "" if state is None else state.phase.name.lower(),
                    "reason": "" if state is None else state.reason,
                    "wanted": None if release is None else titles.get(release, release.hex()[:12]),
                    "as_wanted": serves and state is not None and state.release == release,
                }
            )
    return rows
