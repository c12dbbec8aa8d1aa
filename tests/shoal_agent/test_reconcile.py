import hashlib

from hypothesis import given
from hypothesis import strategies as st

from shoal_agent.reconcile import (
    Actual,
    Admit,
    Assemble,
    Build,
    Fetch,
    Impossible,
    Remove,
    Switch,
    next_step,
)
from shoal_contract import blobs
from shoal_contract.messages import DeltaOffer, FileEntry, Manifest, ModelWanted

OLD_MODEL = b"old" * 50
FILES = {"release.toml": b"toml", "model.onnx": b"new model" * 40, "golden.npz": b"golden"}
DELTA = b"delta"


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


MANIFEST = Manifest("digits", "1.1.0", [FileEntry(n, len(d), digest(d)) for n, d in FILES.items()])
RELEASE = blobs.describe(b"manifest")
WANTED = ModelWanted(
    model="digits",
    release=RELEASE.digest,
    manifest=RELEASE,
    files=[blobs.describe(data) for data in FILES.values()],
    deltas=[DeltaOffer(digest(OLD_MODEL), digest(FILES["model.onnx"]), blobs.describe(DELTA))],
)


class Board:
    """The smallest thing that does what a step says, to see where the steps lead."""

    def __init__(self, *blobs_here: bytes, serving: bytes | None = None, bad_delta: bool = False):
        self.blobs = {digest(data) for data in blobs_here}
        self.serving = serving
        self.assembled = self.admitted = False
        self.bad = frozenset[bytes]()
        self.bad_delta = bad_delta
        self.steps: list[str] = []

    def actual(self) -> Actual:
        return Actual(
            serving=self.serving,
            blobs=frozenset(self.blobs),
            manifest=MANIFEST if RELEASE.digest in self.blobs else None,
            assembled=self.assembled,
            admitted=self.admitted,
            bad_deltas=self.bad,
        )

    def perform(self, step) -> None:
        before = self.serving
        match step:
            case Fetch(blob, what):
                assert blob.digest not in self.blobs
                self.blobs.add(blob.digest)
                self.steps.append(what)
            case Build(base, delta, target):
                assert {base, delta} <= self.blobs
                if self.bad_delta:
                    self.bad |= {delta}
                else:
                    self.blobs.add(target)
                self.steps.append("build")
            case Assemble():
                assert all(entry.digest in self.blobs for entry in MANIFEST.files)
                self.assembled = True
            case Admit():
                assert self.assembled
                self.admitted = True
            case Switch():
                assert self.admitted
                self.serving = RELEASE.digest
            case Remove():
                self.serving = None
        if not isinstance(step, (Switch, Remove)):
            assert self.serving == before, "nothing before the switch touches what serves"

    def settle(self, wanted) -> None:
        for _ in range(30):
            step = next_step(wanted, self.actual())
            if step is None or isinstance(step, Impossible):
                self.last = step
                return
            self.perform(step)
        raise AssertionError("it never settles")


def test_an_empty_board_fetches_everything_in_full():
    board = Board()
    board.settle(WANTED)
    assert board.serving == WANTED.release
    assert board.steps == ["manifest", "release.toml", "model.onnx", "golden.npz"]


def test_a_board_with_the_base_fetches_the_delta_instead_of_the_model():
    board = Board(OLD_MODEL, serving=b"old")
    board.settle(WANTED)
    assert board.serving == WANTED.release
    assert "delta for model.onnx" in board.steps
    assert "model.onnx" not in board.steps


def test_a_delta_that_fails_is_followed_by_the_whole_file():
    board = Board(OLD_MODEL, serving=b"old", bad_delta=True)
    board.settle(WANTED)
    assert board.serving == WANTED.release
    assert board.steps[-2:] == ["model.onnx", "golden.npz"]


def test_what_is_not_wanted_is_removed():
    board = Board(serving=WANTED.release)
    board.settle(None)
    assert board.serving is None


def test_nothing_is_done_when_all_is_as_wanted():
    assert next_step(WANTED, Actual(serving=WANTED.release)) is None
    assert next_step(None, Actual()) is None


def test_a_file_that_nobody_offers_makes_it_impossible():
    without_model = ModelWanted("digits", WANTED.release, RELEASE, WANTED.files[:1])
    board = Board()
    board.settle(without_model)
    assert isinstance(board.last, Impossible)
    assert "nobody offers model.onnx" in board.last.reason


def test_a_manifest_that_is_not_the_releases_makes_it_impossible():
    step = next_step(ModelWanted("digits", bytes(32), RELEASE, []), Actual())
    assert isinstance(step, Impossible)


everything = [OLD_MODEL, DELTA, b"manifest", *FILES.values()]


@given(st.sets(st.sampled_from(everything)), st.booleans(), st.sampled_from([None, b"old"]))
def test_it_arrives_from_every_state_a_power_cut_can_leave(here, bad_delta, serving):
    board = Board(*here, serving=serving, bad_delta=bad_delta)
    board.settle(WANTED)
    assert board.serving == WANTED.release
