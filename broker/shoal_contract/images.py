"""How a picture becomes a model's input: what a release or a pipeline says of it, and what follows. Pure.

The tables leave open what the shape already says; `preparation` puts them together. Doing it is the
business of a board's decoding process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from shoal_contract import toml
from shoal_contract.errors import ContractError

Layout = Literal["nchw", "nhwc"]
Colour = Literal["rgb", "bgr", "grey"]
Fitting = Literal["stretch", "cover", "contain"]
Element = Literal["u5", "uint8", "int8", "float32"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Channels = Annotated[tuple[float, ...], msgspec.Meta(max_length=3)]

ELEMENTS: Final[dict[str, Element]] = {
    "u5": "u5",
    "u8": "uint8",
    "f32": "float32",
    "uint8": "uint8",
    "int8": "int8",
    "float32": "float32",
}
"""What pictures become, by the encoding of an [input] or the dtype of a tensor."""

_COLOURS: Final = 3
_SPATIAL: Final = 2
_FREE: Final = -1
MAX_SIDE: Final = 8192
MAX_VALUES: Final = 16 * 1024 * 1024


class PreparationError(ContractError):
    """A picture cannot be made into this input; the message says what is missing or wrong."""


class ImageTable(toml.Table, frozen=True, kw_only=True):
    """[input.image] of a release, [pipeline.prepare] of a pipeline: whatever is None is left open.

    Pixels are 0 to 255. The input gets (pixel * scale - mean) / std, one mean and std for all channels or one
    each; integers are rounded and cut off where their type ends. `crop` is x, y, width and height as shares of the picture.
    """

    layout: Layout | None = None
    colour: Colour | None = None
    fit: Fitting | None = None
    crop: tuple[Share, Share, Share, Share] | None = None
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)] | None = None
    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)] | None = None
    scale: float | None = None
    mean: Channels = ()
    std: Channels = ()


@dataclass(frozen=True, slots=True)
class Preparation:
    """Everything that is done to a picture, in this order: crop, fit into width x height, colour, numbers."""

    width: int
    height: int
    layout: Layout
    colour: Colour
    element: Element
    fit: Fitting = "stretch"
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input, without the batch dimension, channels included."""
        channels = 1 if self.colour == "grey" else _COLOURS
        sides = (self.height, self.width)
        return (channels, *sides) if self.layout == "nchw" else (*sides, channels)


def preparation(shape: Sequence[int], element: Element, *tables: ImageTable | None) -> Preparation:
    """What has to be done to a picture for an input of this shape.

    Args:
        shape: without the batch dimension: channels and sides in either order, or height and width; -1: free.
        element: what the input's numbers are.
        tables: of the release and of the pipeline; a later one wins, key by key.

    Raises:
        PreparationError: the shape is no picture's, or something is missing or contradicts it.
    """
    said = _merged(tables)
    layout, channels, height, width = _sides(shape, said)
    colour = said.colour or ("grey" if channels == 1 else "rgb")
    if (colour == "grey") != (channels == 1):
        raise PreparationError(
            f"colour {colour!r} does not have the {channels} channels of {list(shape)}"
        )
    for name, values in (("mean", said.mean), ("std", said.std)):
        if len(values) not in {0, 1, channels}:
            raise PreparationError(f"{name} has {len(values)} values for {channels} channels")
    if 0 in said.std:
        raise PreparationError("std is 0")
    crop = said.crop or (0.0, 0.0, 1.0, 1.0)
    if not crop[2] or not crop[3] or crop[0] + crop[2] > 1 or crop[1] + crop[3] > 1:
        raise PreparationError(f"crop {list(crop)} is no part of a picture: x, y, width, height")
    if height * width * channels > MAX_VALUES:
        raise PreparationError(f"{height} x {width} x {channels} are more than {MAX_VALUES} values")
    return Preparation(
        width=width,
        height=height,
        layout=layout,
        colour=colour,
        element=element,
        fit=said.fit or "stretch",
        crop=crop,
        scale=1.0 if said.scale is None else said.scale,
        mean=said.mean,
        std=said.std,
    )


def _merged(tables: Sequence[ImageTable | None]) -> ImageTable:
    values: dict[str, object] = {}
    for table in tables:
        if table is not None:
            found = {name: getattr(table, name) for name in table.__struct_fields__}
            values |= {name: value for name, value in found.items() if value not in (None, ())}
    return msgspec.structs.replace(ImageTable(), **values)


def _sides(shape: Sequence[int], said: ImageTable) -> tuple[Layout, int, int, int]:
    """Layout, channels, height, width."""
    if len(shape) == _SPATIAL:
        layout: Layout = said.layout or "nchw"
        channels, sides = 1, tuple(shape)
    elif len(shape) == _SPATIAL + 1:
        layout = said.layout or _guessed(shape)
        channels = shape[0] if layout == "nchw" else shape[2]
        sides = tuple(shape[1:] if layout == "nchw" else shape[:2])
    else:
        raise PreparationError(f"an input of shape {list(shape)} is no picture")
    if channels not in {1, _COLOURS}:
        raise PreparationError(
            f"{channels} channels in {list(shape)} as {layout}: 1 or 3 are known"
        )
    height, width = (
        _side(name, side, wanted)
        for name, side, wanted in zip(
            ("height", "width"), sides, (said.height, said.width), strict=True
        )
    )
    return layout, channels, height, width


def _side(name: str, side: int, wanted: int | None) -> int:
    if side == _FREE:
        if wanted is None:
            raise PreparationError(f"the input's {name} is free: say {name}")
        return wanted
    if wanted not in (None, side):
        raise PreparationError(f"{name} {wanted} contradicts the input's {side}")
    return side


def _guessed(shape: Sequence[int]) -> Layout:
    first, last = shape[0] in {1, _COLOURS}, shape[2] in {1, _COLOURS}
    if first == last:
        raise PreparationError(f"{list(shape)} may be either layout: say nchw or nhwc")
    return "nchw" if first else "nhwc"
