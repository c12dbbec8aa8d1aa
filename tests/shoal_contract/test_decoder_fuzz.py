"""Mutated bytes at every decoder of the contract: a value or its one kind of error, and never late.

Bits flipped, bytes cut, repeated, spliced with another input's, lengths blown up. Counted, not sampled by
Hypothesis: a million in CI, ten in `make test-long`.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tests.shoal_contract.test_messages import EXAMPLES
from tests.shoal_contract.test_release import GOOD

from shoal_contract import cbor, envelope, frames, messages, release
from shoal_contract.errors import ContractError
from shoal_contract.frames import Frame, Kind, Op
from shoal_contract.release import parse_manifest
from shoal_contract.signatures import Signer

HANG_S = 0.1
MESSAGES = [messages.encode(example) for example in EXAMPLES.values()]
SIGNER = Signer(b"\x01" * 32)
ENVELOPES = [SIGNER.sign(data, topic="shoal/n/n1/c") for data in MESSAGES]
FRAMES = [
    frames.encode(Frame(kind, 7, op, args))[:-1]
    for kind in Kind
    for op in Op
    for args in ((), (1, 2.5, b"x" * 20), ("text", None, True))
]
SPEC = GOOD.encode()
MANIFEST = release.build_manifest(
    release.parse_spec(SPEC),
    {name: name.encode() for name in release.parse_spec(SPEC).files},
    [messages.OperatorSet("", 17, ["Conv", "Relu"])],
)
INTERESTING = (
    0x00,
    0x17,
    0x1B,
    0x3B,
    0x5B,
    0x5F,
    0x7F,
    0x80,
    0x9B,
    0x9F,
    0xBB,
    0xBF,
    0xC2,
    0xF6,
    0xFB,
    0xFF,
)


@dataclass(frozen=True)
class Target:
    decode: Callable[[bytes], object]
    seeds: list[bytes]
    share: float
    """Of the tries."""


TARGETS = {
    "CBOR": Target(lambda data: cbor.decode(data, max_bytes=1 << 16), MESSAGES + ENVELOPES, 0.25),
    "COSE": Target(envelope.unpack, ENVELOPES, 0.2),
    "messages": Target(messages.decode, MESSAGES, 0.25),
    "manifest": Target(lambda data: parse_manifest(data, release=_digest(data)), [MANIFEST], 0.1),
    "frames": Target(frames.decode, FRAMES, 0.19),
    "release.toml": Target(release.parse_spec, [SPEC], 0.01),
}


def _digest(data: bytes) -> bytes:
    # A manifest's id is the sha256 of its bytes: the forger knows how to make it.
    return hashlib.sha256(data).digest()


def mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 1 if at < len(data):
                data[at] = draw.choice(INTERESTING)
            case 2:
                del data[at : at + draw.randrange(1, 9)]
            case 3:
                data[at:at] = data[max(0, at - draw.randrange(1, 17)) : at] * draw.randrange(1, 4)
            case 4:
                other = draw.choice(seeds)
                data[at:] = other[draw.randrange(len(other) + 1) :]
            case _:
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize(
    "tries",
    [
        pytest.param(20_000, id="some"),
        pytest.param(1_000_000, id="million", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(10_000_000, id="ten", marks=[pytest.mark.long, pytest.mark.timeout(3000)]),
    ],
)
def test_whatever_comes_is_a_value_or_the_decoders_error_within_a_tenth_of_a_second(
    tries, record_property
):
    draw = random.Random(11)  # noqa: S311 - a test that can be repeated
    counts, crashes, slowest_s = Counter[str](), list[str](), 0.0
    for name, target in TARGETS.items():
        for _ in range(int(tries * target.share)):
            data = mutated(draw, target.seeds)
            began_s = time.thread_time()
            try:
                target.decode(data)
            except ContractError:
                counts[f"{name} refused"] += 1
            except Exception as exc:  # noqa: BLE001 - what must not happen is counted
                crashes.append(f"{name}: {exc!r} for {data.hex()}")
            else:
                counts[f"{name} decoded"] += 1
            slowest_s = max(slowest_s, time.thread_time() - began_s)
    told = ", ".join(f"{what} {count:,}" for what, count in counts.items())
    print(f"{tries:,} tries ({told}): {len(crashes)} crashes, slowest {slowest_s * 1000:.1f} ms")
    record_property("tries", tries)
    record_property("bad", len(crashes))
    record_property("worst_s", slowest_s)
    assert not crashes
    assert slowest_s < HANG_S
