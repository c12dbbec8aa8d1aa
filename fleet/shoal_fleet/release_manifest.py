"""What a release's manifest says of its model: made alike by who adds the release and by who signs it."""

from collections.abc import Mapping, Sequence

from shoal_contract.errors import DecodeError
from shoal_contract.messages import OperatorSet
from shoal_contract.onnx_outline import outline
from shoal_contract.release import ReleaseSpec, build_manifest
from shoal_fleet.errors import ReleaseError


def operators_of(spec: ReleaseSpec, model: bytes) -> Sequence[OperatorSet]:
    """The operators that a board is to allow this model.

    Raises:
        ReleaseError: it is no model, or its weights are elsewhere.
    """
    try:
        found = outline(model)
    except DecodeError as exc:
        raise ReleaseError(f"{spec.model.file}: is not a model that loads: {exc}") from exc
    for external in found.external:
        raise ReleaseError(
            f"{spec.model.file}: the tensor {external.tensor!r} lies in {external.location[:80]!r};"
            " a model has its weights in its own file"
        )
    return found.operator_sets


def manifest_of(spec: ReleaseSpec, files: Mapping[str, bytes]) -> bytes:
    """The manifest of a release with these files, as the controller makes it when they are added.

    Raises:
        ReleaseError: the model is none.
    """
    return build_manifest(spec, files, operators_of(spec, files[spec.model.file]))
