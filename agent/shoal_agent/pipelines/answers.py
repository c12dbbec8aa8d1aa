"""What the output of a release of tensors means, as [pipeline.answer] says. Pure, and without numpy."""

import math
import struct

from shoal_agent.inference.errors import BadInputError
from shoal_agent.inference.tensors import Tensor
from shoal_contract.messages import Answer
from shoal_contract.pipelines import AnswerTable


def read(tensor: Tensor, table: AnswerTable) -> Answer:
    """The label with the largest value; without labels its number.

    Raises:
        BadInputError: the output is not finite, or has not one value a label.
    """
    code = "f" if tensor.dtype == "float32" else "d"
    count = math.prod(tensor.shape)
    values = struct.unpack(f"<{count}{code}", tensor.data)
    if not values or not all(map(math.isfinite, values)):
        raise BadInputError(f"the output {table.output!r} is not finite")
    if table.labels and len(table.labels) != count:
        raise BadInputError(
            f"the output {table.output!r} has {count} values for {len(table.labels)} labels"
        )
    best = max(range(count), key=values.__getitem__)
    confidence = values[best]
    if table.decode == "softmax-argmax":
        confidence = 1.0 / math.fsum(math.exp(value - confidence) for value in values)
    return Answer(table.labels[best] if table.labels else str(best), confidence)
