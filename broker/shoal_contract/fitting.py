"""Whether a pipeline fits a release, and what makes them fit: units, pictures, the way to the answer. Pure.

Asked by the controller before a pipeline goes out, and by a board before it runs.
"""

import math
from dataclasses import dataclass
from typing import Final

from shoal_contract.errors import MisfitError
from shoal_contract.images import ELEMENTS, Preparation, PreparationError, preparation
from shoal_contract.pipelines import PipelineTable, TopicTable
from shoal_contract.release import FREE, InputTable, InputTensorTable, ReleaseSpec
from shoal_contract.units import Conversion, UnitError, conversion

_SPATIAL: Final = 2


@dataclass(frozen=True, slots=True)
class Fit:
    """What a pipeline does so that a release can read it.

    Attributes:
        conversions: one a path of [pipeline.topic] (None: leave it), or empty.
        preparation: of pictures.
        tensor: what the model's input is called, where the release takes tensors and not items.
        shape: of that tensor, with the batch dimension if it has one; empty for texts.
    """

    conversions: tuple[Conversion | None, ...] = ()
    preparation: Preparation | None = None
    tensor: str | None = None
    shape: tuple[int, ...] = ()


def fit(table: PipelineTable, spec: ReleaseSpec) -> Fit:
    """What makes the pipeline fit this release.

    Raises:
        MisfitError: nothing does; the message says where and what to change.
    """
    has_pictures = table.images is not None or table.camera is not None
    where = f"{spec.name}@{spec.version}"
    _check_labels(table, spec, where)
    gives_texts = table.topic is not None and table.topic.encoding == "text"
    if gives_texts or spec.text is not None:
        return _texts(spec, where, gives_texts=gives_texts)
    if has_pictures:
        return _pictures(table, spec, where)
    if spec.input is None:
        raise MisfitError(f"{where} takes tensors, and only pictures become tensors in a pipeline")
    if table.topic is not None and table.topic.format != "raw":
        return Fit(conversions=_values(table.topic, spec.input, where))
    if table.units is not None:
        try:
            change = conversion(table.units, spec.input.units)
        except UnitError as exc:
            raise MisfitError(f"units: {exc} (which {where} wants)") from exc
        if change is not None:
            raise MisfitError(
                f"units: {table.units!r} where {where} wants {spec.input.units!r}; what is encoded"
                " already cannot be converted"
            )
    return Fit()


def _texts(spec: ReleaseSpec, where: str, *, gives_texts: bool) -> Fit:
    if spec.text is None:
        raise MisfitError(f'[pipeline.topic] encoding "text": {where} takes no texts')
    if not gives_texts:
        raise MisfitError(
            f'{where} takes texts, which only a [pipeline.topic] with encoding = "text" gives'
        )
    return Fit(tensor=spec.text.name)


def _values(topic: TopicTable, wanted: InputTable, where: str) -> tuple[Conversion | None, ...]:
    if topic.encoding != wanted.encoding:
        raise MisfitError(
            f"[pipeline.topic] encoding {topic.encoding!r}: {where} reads {wanted.encoding!r}"
        )
    if not topic.units:
        return ()
    count = len(topic.values)
    theirs = [unit.strip() for unit in wanted.units.split(",")]
    if len(theirs) not in {1, count}:
        raise MisfitError(f"{where} names {len(theirs)} units, [pipeline.topic] has {count} values")
    changes = []
    for place in range(count):
        path = topic.values[place]
        unit = topic.units[place if len(topic.units) > 1 else 0]
        target = theirs[place if len(theirs) > 1 else 0]
        try:
            change = conversion(unit, target)
        except UnitError as exc:
            raise MisfitError(f"{path}: {exc} (which {where} wants)") from exc
        if change is not None and not topic.convert:
            raise MisfitError(
                f"{path} is in {unit!r}, {where} wants {target!r}: set convert = true"
            )
        changes.append(change)
    return tuple(changes) if any(changes) else ()


def _pictures(table: PipelineTable, spec: ReleaseSpec, where: str) -> Fit:
    wanted = spec.input if spec.input is not None else _tensor(table, spec, where)
    kind = wanted.encoding if isinstance(wanted, InputTable) else wanted.dtype
    element = ELEMENTS.get(kind)
    if element is None:
        raise MisfitError(f"{where}: pictures do not become {kind}, only {', '.join(ELEMENTS)}")
    try:
        prepared = preparation(wanted.shape, element, wanted.image, table.prepare)
    except PreparationError as exc:
        raise MisfitError(f"[pipeline.prepare] for {where}: {exc}") from exc
    if spec.input is not None:
        return Fit(preparation=prepared)
    sides = prepared.shape if len(wanted.shape) > _SPATIAL else (prepared.height, prepared.width)
    shape = (1, *sides) if spec.batch else sides
    return Fit(preparation=prepared, tensor=wanted.name, shape=shape)


def _tensor(table: PipelineTable, spec: ReleaseSpec, where: str) -> InputTensorTable:
    found = [one for one in spec.inputs if table.input in (None, one.name)]
    if len(spec.inputs) != 1 or not found:
        names = ", ".join(one.name for one in spec.inputs)
        raise MisfitError(f"{where} takes {names}: a pipeline gives one input, by its name")
    return found[0]


def _check_labels(table: PipelineTable, spec: ReleaseSpec, where: str) -> None:
    if spec.output is not None:
        if table.answer is not None:
            raise MisfitError(f"{where} says itself how it is answered: no [pipeline.answer]")
        labels = tuple(spec.output.labels)
    else:
        if table.answer is None:
            raise MisfitError(f"{where} gives tensors: [pipeline.answer] has to say what they mean")
        labels = _answered(table, spec, where)
    command = table.command
    if (
        command is not None
        and command.value == "number"
        and labels
        and not any(map(_is_integer, labels))
    ):
        raise MisfitError(
            f'[pipeline.command]: no label of {where} spells a number: value = "text"'
        )


def _answered(table: PipelineTable, spec: ReleaseSpec, where: str) -> tuple[str, ...]:
    answer = table.answer
    assert answer is not None  # noqa: S101 - asked for by the caller
    output = next((one for one in spec.served[1] if one.name == answer.output), None)
    if output is None:
        raise MisfitError(f"[pipeline.answer]: {where} has no output {answer.output!r}")
    if output.dtype not in {"float32", "float64"}:
        raise MisfitError(
            f"[pipeline.answer]: {output.name!r} of {where} is {output.dtype}, not floats"
        )
    count = math.prod(output.shape)
    if answer.labels and FREE not in output.shape and len(answer.labels) != count:
        raise MisfitError(
            f"[pipeline.answer]: {len(answer.labels)} labels for {count} values of {where}"
        )
    return answer.labels


def _is_integer(label: str) -> bool:
    try:
        int(label)
    except ValueError:
        return False
    return True
