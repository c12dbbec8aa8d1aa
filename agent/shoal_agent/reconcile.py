"""Wanted x actual -> the next step for one model. Pure: no files, no clock, no network."""

from dataclasses import dataclass, field

from shoal_contract.messages import BlobRef, DeltaOffer, Manifest, ModelWanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """What is true of one model on this board.

    Args:
        serving: the release that serves.
        blobs: digests of the blobs that are here.
        manifest: the wanted release's manifest, once it is here.
        assembled: the wanted release's directory is here.
        admitted: the wanted release is loaded beside the one that serves and passed its gate.
        shadowed: it has passed its shadow run, or needs none.
        bad_deltas: digests of deltas that did not lead to the right file.
    """

    serving: bytes | None = None
    blobs: frozenset[bytes] = frozenset()
    manifest: Manifest | None = None
    assembled: bool = False
    admitted: bool = False
    shadowed: bool = True
    bad_deltas: frozenset[bytes] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring this blob here."""

    blob: BlobRef
    what: str


@dataclass(frozen=True, slots=True)
class Build:
    """Make the blob `target` from the blob `base` with the delta blob `delta`."""

    base: bytes
    delta: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class Assemble:
    """Make the release's directory."""


@dataclass(frozen=True, slots=True)
class Admit:
    """Load the release beside the one that serves and try it."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """Have the release run copies of what is asked of the one that serves, and compare."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Let the release serve."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Let nothing serve."""


@dataclass(frozen=True, slots=True)
class Impossible:
    """The wanted state itself cannot be followed."""

    reason: str


Step = Fetch | Build | Assemble | Admit | Shadow | Switch | Remove | Impossible


def next_step(wanted: ModelWanted | None, actual: Actual) -> Step | None:
    """What to do next; None when actual is what is wanted.

    The old release goes on serving until Switch: nothing before it touches what serves.
    """
    if wanted is None:
        return Remove() if actual.serving is not None else None
    if actual.serving == wanted.release:
        return None
    if wanted.manifest.digest != wanted.release:
        return Impossible("the manifest that is offered is not the release's")
    if actual.admitted:
        return Switch() if actual.shadowed else Shadow()
    # Before the rest, though it may all be here: the files are held against it.
    if actual.manifest is None:
        return Fetch(wanted.manifest, "manifest")
    if actual.assembled:
        return Admit()
    for entry in actual.manifest.files:
        if entry.digest not in actual.blobs:
            return _obtain(wanted, entry.digest, entry.name, actual)
    return Assemble()


def _obtain(wanted: ModelWanted, digest: bytes, name: str, actual: Actual) -> Step:
    full = next((blob for blob in wanted.files if blob.digest == digest), None)
    offer = _best_delta(wanted, digest, full, actual)
    if offer is not None:
        if offer.blob.digest in actual.blobs:
            return Build(base=offer.base, delta=offer.blob.digest, target=digest)
        return Fetch(offer.blob, f"delta for {name}")
    if full is not None:
        return Fetch(full, name)
    return Impossible(f"nobody offers {name} and no delta starts from a file that is here")


def _best_delta(
    wanted: ModelWanted, digest: bytes, full: BlobRef | None, actual: Actual
) -> DeltaOffer | None:
    usable = [
        offer
        for offer in wanted.deltas
        if offer.target == digest
        and offer.base in actual.blobs
        and offer.blob.digest not in actual.bad_deltas
        and (full is None or offer.blob.size_bytes < full.size_bytes)
    ]
    return min(usable, key=lambda offer: offer.blob.size_bytes, default=None)
