"""Units of what is measured: whether two are the same, and how one becomes the other. Pure.

Known are the units of the table below; a unit that is not in it is the same only as itself, word for word.
"""

from dataclasses import dataclass
from typing import Final

from shoal_contract.errors import ContractError


class UnitError(ContractError):
    """Two units that are not the same, and of which one does not become the other."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """value * factor + offset."""

    factor: float
    offset: float = 0.0

    def __call__(self, value: float) -> float:
        """The value in the other unit."""
        return value * self.factor + self.offset


_F_TO_K: Final = 5 / 9

# dimension -> unit -> (factor, offset) to the first unit of the dimension, whose own are (1, 0)
_TABLE: Final[dict[str, dict[str, tuple[float, float]]]] = {
    "temperature": {"K": (1, 0), "degC": (1, 273.15), "degF": (_F_TO_K, 459.67 * _F_TO_K)},
    "pressure": {
        "Pa": (1, 0), "hPa": (100, 0), "mbar": (100, 0), "kPa": (1e3, 0), "MPa": (1e6, 0),
        "bar": (1e5, 0), "psi": (6894.757293168, 0), "mmHg": (133.322387415, 0),
    },
    "ratio": {"1": (1, 0), "%": (0.01, 0), "permille": (1e-3, 0), "ppm": (1e-6, 0), "ppb": (1e-9, 0)},
    "length": {
        "m": (1, 0), "um": (1e-6, 0), "mm": (1e-3, 0), "cm": (0.01, 0), "km": (1e3, 0),
        "in": (0.0254, 0), "ft": (0.3048, 0),
    },
    "time": {"s": (1, 0), "us": (1e-6, 0), "ms": (1e-3, 0), "min": (60, 0), "h": (3600, 0), "d": (86400, 0)},
    "speed": {"m/s": (1, 0), "mm/s": (1e-3, 0), "km/h": (1 / 3.6, 0)},
    "acceleration": {"m/s2": (1, 0), "g0": (9.80665, 0)},
    "mass": {"kg": (1, 0), "mg": (1e-6, 0), "g": (1e-3, 0), "t": (1e3, 0)},
    "voltage": {"V": (1, 0), "uV": (1e-6, 0), "mV": (1e-3, 0), "kV": (1e3, 0)},
    "current": {"A": (1, 0), "uA": (1e-6, 0), "mA": (1e-3, 0)},
    "power": {"W": (1, 0), "mW": (1e-3, 0), "kW": (1e3, 0)},
    "energy": {"J": (1, 0), "Wh": (3600, 0), "kWh": (3.6e6, 0)},
    "frequency": {"Hz": (1, 0), "kHz": (1e3, 0), "MHz": (1e6, 0), "rpm": (1 / 60, 0)},
    "volume": {"m3": (1, 0), "l": (1e-3, 0), "ml": (1e-6, 0)},
    "flow": {"m3/s": (1, 0), "m3/h": (1 / 3600, 0), "l/min": (1e-3 / 60, 0)},
    "illuminance": {"lx": (1, 0), "klx": (1e3, 0)},
}  # fmt: skip
_ALIASES: Final = {
    "°C": "degC", "℃": "degC", "deg C": "degC", "celsius": "degC", "Celsius": "degC",
    "°F": "degF", "℉": "degF", "deg F": "degF", "fahrenheit": "degF", "Fahrenheit": "degF",
    "kelvin": "K", "Kelvin": "K", "percent": "%", "µm": "um", "μm": "um", "µs": "us", "μs": "us",
    "µV": "uV", "μV": "uV", "µA": "uA", "μA": "uA", "m/s²": "m/s2", "m/s^2": "m/s2", "m³": "m3",
    "m³/h": "m3/h", "m³/s": "m3/s", "L": "l", "mL": "ml", "L/min": "l/min", "lux": "lx", "sec": "s",
}  # fmt: skip
_DIMENSION: Final = {unit: name for name, units in _TABLE.items() for unit in units}


def conversion(source: str, target: str) -> Conversion | None:
    """What makes a value in `source` one in `target`; None: they are the same.

    Raises:
        UnitError: neither; the message is a clause that says why.
    """
    known, wanted = _canonical(source), _canonical(target)
    if known == wanted:
        return None
    dimension = _DIMENSION.get(known)
    if dimension is None or dimension != _DIMENSION.get(wanted):
        raise UnitError(f"{source!r} is not {target!r}, and does not become it")
    factor, offset = _TABLE[dimension][known]
    other_factor, other_offset = _TABLE[dimension][wanted]
    if (factor, offset) == (other_factor, other_offset):
        return None
    return Conversion(factor / other_factor, (offset - other_offset) / other_factor)


def _canonical(text: str) -> str:
    plain = " ".join(text.split())
    return _ALIASES.get(plain, plain)
