"""A decoded picture -> the bytes that a model takes. Only decoding processes import this (Pillow, numpy)."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from shoal_contract.images import Preparation

_RANGES: Final = {"u5": (0, 31), "uint8": (0, 255), "int8": (-128, 127)}
_U5_SHIFTS: Final = np.array([4, 3, 2, 1, 0], dtype=np.uint8)
MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Eight bits a channel; others mean something else by their numbers."""


def prepared(image: Image.Image, wanted: Preparation) -> bytes:
    """The picture as it is wanted, in C order, little-endian; five-bit values are packed, first bit first.

    Raises:
        ValueError: a picture of another kind of pixels.
    """
    if image.mode not in MODES:
        raise ValueError(f"pixels of the kind {image.mode!r} are not read")
    image = _cropped(image, wanted.crop)
    image = image.convert("L" if wanted.colour == "grey" else "RGB")
    pixels = np.asarray(_fitted(image, wanted), dtype=np.float32)
    if pixels.ndim == 2:  # noqa: PLR2004 - grey has no dimension for it
        pixels = pixels[:, :, None]
    if wanted.colour == "bgr":
        pixels = pixels[:, :, ::-1]
    return _encoded(_scaled(pixels, wanted), wanted)


def _cropped(image: Image.Image, crop: tuple[float, float, float, float]) -> Image.Image:
    if crop == (0.0, 0.0, 1.0, 1.0):
        return image
    x, y, width, height = crop
    left, top = round(x * image.width), round(y * image.height)
    right = max(left + 1, round((x + width) * image.width))
    bottom = max(top + 1, round((y + height) * image.height))
    return image.crop((left, top, min(right, image.width), min(bottom, image.height)))


def _fitted(image: Image.Image, wanted: Preparation) -> Image.Image:
    size = (wanted.width, wanted.height)
    if image.size == size:
        return image
    if wanted.fit == "stretch":
        return image.resize(size, Image.Resampling.BILINEAR)
    ratios = (wanted.width / image.width, wanted.height / image.height)
    if wanted.fit == "cover":
        # The part of the picture that has the wanted shape, from its middle.
        ratio = max(ratios)
        part = (wanted.width / ratio, wanted.height / ratio)
        left, top = (image.width - part[0]) / 2, (image.height - part[1]) / 2
        box = (left, top, left + part[0], top + part[1])
        return image.resize(size, Image.Resampling.BILINEAR, box=box)
    ratio = min(ratios)
    inner = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    canvas = Image.new(image.mode, size)
    place = ((wanted.width - inner[0]) // 2, (wanted.height - inner[1]) // 2)
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), place)
    return canvas


def _scaled(pixels: npt.NDArray[np.float32], wanted: Preparation) -> npt.NDArray[np.float32]:
    if wanted.scale != 1.0:
        pixels = np.multiply(pixels, np.float32(wanted.scale), dtype=np.float32)
    if wanted.mean:
        pixels = np.subtract(pixels, np.array(wanted.mean, np.float32), dtype=np.float32)
    if wanted.std:
        pixels = np.divide(pixels, np.array(wanted.std, np.float32), dtype=np.float32)
    return pixels


def _encoded(values: npt.NDArray[np.float32], wanted: Preparation) -> bytes:
    if wanted.layout == "nchw":
        values = values.transpose(2, 0, 1)
    if wanted.element == "float32":
        return np.ascontiguousarray(values, dtype="<f4").tobytes()
    low, high = _RANGES[wanted.element]
    whole: npt.NDArray[Any] = np.clip(np.rint(values), low, high)
    if wanted.element == "u5":
        levels = whole.astype(np.uint8).reshape(-1, 1)
        return np.packbits(levels >> _U5_SHIFTS & 1).tobytes()
    return np.ascontiguousarray(whole).astype(wanted.element).tobytes()
