"""What suits which processor: how wide weights may be, by instruction set and by what boards report. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Preset:
    """How to quantise for one instruction set.

    Attributes:
        is_narrow: weights of 7 bits, because the sum of two 8-bit products saturates there.
    """

    name: str
    is_narrow: bool
    about: str


PRESETS: Final = {
    preset.name: preset
    for preset in (
        Preset("arm64", is_narrow=False, about="64-bit ARM: 8-bit weights"),
        Preset("avx512_vnni", is_narrow=False, about="x86 with VNNI: 8-bit weights"),
        Preset("avx512", is_narrow=True, about="x86 with AVX-512, without VNNI: 7-bit weights"),
        Preset("avx2", is_narrow=True, about="any x86: 7-bit weights; right everywhere"),
    )
}
DEFAULT: Final = PRESETS["arm64"]
ANYWHERE: Final = PRESETS["avx2"]

_ARM: Final = frozenset({"aarch64", "arm64"})
_X86: Final = frozenset({"x86_64", "amd64"})
_DOT_PRODUCTS: Final = frozenset({"avx512_vnni", "avx_vnni"})


def preset_for(machine: str, cpu_flags: Iterable[str]) -> Preset:
    """The preset of one board, by what it reports; an unknown machine gets what is right everywhere."""
    flags = frozenset(cpu_flags)
    name = machine.lower()
    if name in _ARM:
        return PRESETS["arm64"]
    if name in _X86 and flags & _DOT_PRODUCTS:
        return PRESETS["avx512_vnni"]
    if name in _X86 and "avx512f" in flags:
        return PRESETS["avx512"]
    return ANYWHERE


def preset_for_all(presets: Sequence[Preset]) -> Preset:
    """The one preset that is right on all of them."""
    names = {preset.name for preset in presets}
    if len(names) == 1:
        return presets[0]
    return ANYWHERE if any(preset.is_narrow for preset in presets) or not names else DEFAULT
