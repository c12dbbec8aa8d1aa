"""What an ONNX file says of itself: which operators it uses, how deep graphs nest, what its tensors claim.

A strict reader that runs nothing: what it refuses, ONNX Runtime never sees. It stands here because board and
controller must read the same. Field numbers: onnx.proto of ONNX 1.23.
"""

from collections.abc import Collection
from dataclasses import dataclass
from mmap import mmap
from typing import Final

from shoal_contract.errors import DecodeError
from shoal_contract.messages import MAX_OPERATOR_BYTES, OperatorSet
from shoal_contract.onnx_tensors import External, Tensors
from shoal_contract.protobuf import Field, Reader, message, signed, span, varint

MAX_DEPTH: Final = 8
"""Graphs within graphs: the bodies of If, Loop and Scan."""
MAX_NODES: Final = 1 << 17
MAX_VERSION: Final = 1 << 20
MAX_OPERATORS: Final = 512


@dataclass(frozen=True, slots=True)
class Outline:
    """An ONNX file in short. `depth` 1: no graph within the graph."""

    operator_sets: tuple[OperatorSet, ...]
    nodes: int
    depth: int
    external: tuple[External, ...]

    def beyond(self, listed: Collection[OperatorSet]) -> list[str]:
        """Operators that are used and not listed, as text."""
        allowed = {
            (group.domain, group.version, name) for group in listed for name in group.operators
        }
        return [
            f"{name} ({group.domain or 'ai.onnx'} {group.version})"
            for group in self.operator_sets
            for name in group.operators
            if (group.domain, group.version, name) not in allowed
        ]


def outline(data: bytes | mmap) -> Outline:
    """The outline of an ONNX file.

    Raises:
        DecodeError: it is no ONNX model, or none that is served; the message says why.
    """
    return _Walk(data).model()


class _Walk:
    def __init__(self, data: bytes | mmap) -> None:
        self._reader = Reader(data)
        self._size = len(data)
        self._used: set[tuple[str, int, str]] = set()
        self._tensors = Tensors(self._reader)
        self._nodes = self._depth = 0

    def model(self) -> Outline:
        graphs: list[Field] = []
        functions: list[Field] = []
        opsets: dict[str, int] = {}
        for field in self._reader.fields(0, self._size):
            match field.number:
                case 7:
                    graphs.append(message(field, "graph"))
                case 8:
                    self._import(field, opsets)
                case 20:
                    raise DecodeError("it carries training information")
                case 25:
                    functions.append(message(field, "function"))
                case _:
                    pass
        if len(graphs) != 1:
            raise DecodeError("it is no ONNX model" if not graphs else "it has more than one graph")
        self._graph(graphs[0], opsets, depth=1)
        for function in functions:
            self._function(function)
        return Outline(
            self._operator_sets(), self._nodes, self._depth, tuple(self._tensors.external)
        )

    def _operator_sets(self) -> tuple[OperatorSet, ...]:
        if len(self._used) > MAX_OPERATORS:
            raise DecodeError(f"it uses {len(self._used)} operators; {MAX_OPERATORS} are allowed")
        groups = sorted({(domain, version) for domain, version, _ in self._used})
        return tuple(
            OperatorSet(
                domain,
                version,
                sorted(name for d, v, name in self._used if (d, v) == (domain, version)),
            )
            for domain, version in groups
        )

    def _import(self, field: Field, opsets: dict[str, int]) -> None:
        domain, version = "", 0
        for part in self._reader.fields(*span(field, "opset")):
            match part.number:
                case 1:
                    domain = self._name(part, "domain")
                case 2:
                    version = signed(varint(part))
                case _:
                    pass
        domain = _plain(domain)
        if not 1 <= version <= MAX_VERSION:
            raise DecodeError(f"it names opset {version} of {domain or 'ai.onnx'!r}")
        if opsets.setdefault(domain, version) != version:
            raise DecodeError(f"it names two opsets of {domain or 'ai.onnx'!r}")

    def _function(self, field: Field) -> None:
        nodes: list[Field] = []
        opsets: dict[str, int] = {}
        for part in self._reader.fields(*span(field, "function")):
            match part.number:
                case 7:
                    nodes.append(part)
                case 9:
                    self._import(part, opsets)
                case 11:
                    self._attribute(part, opsets, 1)
                case _:
                    pass
        for node in nodes:
            self._node(node, opsets, 1)

    def _graph(self, field: Field, opsets: dict[str, int], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise DecodeError(f"its graphs nest deeper than {MAX_DEPTH}")
        self._depth = max(self._depth, depth)
        for part in self._reader.fields(*span(field, "graph")):
            match part.number:
                case 1:
                    self._node(part, opsets, depth)
                case 5:
                    self._tensors.read(part)
                case 15:
                    self._tensors.read_sparse(part)
                case _:
                    pass

    def _node(self, field: Field, opsets: dict[str, int], depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise DecodeError(f"it has more than {MAX_NODES} nodes")
        operators: list[str] = []
        domains: list[str] = []
        for part in self._reader.fields(*span(field, "node")):
            match part.number:
                case 4:
                    operators.append(self._name(part, "operator"))
                case 5:
                    self._attribute(part, opsets, depth)
                case 7:
                    domains.append(self._name(part, "domain"))
                case _:
                    pass
        if len(operators) != 1 or not operators[0] or len(domains) > 1:
            raise DecodeError("a node does not name one operator")
        domain = _plain(domains[0] if domains else "")
        if domain not in opsets:
            raise DecodeError(
                f"{operators[0]!r} is of {domain or 'ai.onnx'!r}, of which no opset is named"
            )
        self._used.add((domain, opsets[domain], operators[0]))

    def _attribute(self, field: Field, opsets: dict[str, int], depth: int) -> None:
        for part in self._reader.fields(*span(field, "attribute")):
            match part.number:
                case 5 | 10:
                    self._tensors.read(part)
                case 6 | 11:
                    self._graph(part, opsets, depth + 1)
                case 22 | 23:
                    self._tensors.read_sparse(part)
                case _:
                    pass

    def _name(self, field: Field, what: str) -> str:
        text = self._reader.text(field, max_bytes=MAX_OPERATOR_BYTES)
        if not text.isprintable():
            raise DecodeError(f"the name of an {what} is not printable")
        return text


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
