"""What both decoding processes share: their questions come in on stdin, their answers go out where stdout was."""

import os
import sys
from collections.abc import Callable
from typing import Any

from shoal_agent import confined
from shoal_agent.pipelines import picture_pipe as pipe


def serve(
    arguments: list[str], start: Callable[[Any], Callable[[pipe.Question], pipe.Answer]]
) -> int:
    """Answer until the agent closes the pipe.

    Args:
        arguments: the agent's process id.
        start: given the opening, returns what answers questions; called when the limits are in force.
    """
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not become an answer
    opening = _next(questions)
    if not isinstance(opening, (pipe.OpenFolder, pipe.OpenCamera)):
        return 0
    confined.confine(int(arguments[0]), memory_bytes=opening.memory_bytes)
    try:
        respond = start(opening)
    except (ImportError, OSError) as exc:
        _say(answers, pipe.Failed(_reason(exc)))
        return 1
    gone = list(getattr(respond, "gone", []))
    _say(answers, pipe.Ready(gone))
    while (question := _next(questions)) is not None:
        assert not isinstance(question, (pipe.OpenFolder, pipe.OpenCamera))  # noqa: S101
        _say(answers, respond(question))
    return 0


def _reason(exc: ImportError | OSError) -> str:
    if isinstance(exc, ImportError):
        return f"{exc}: pictures need shoal[images], cameras shoal[camera]"
    return str(exc)


def _next(questions: Any) -> pipe.Opening | pipe.Question | None:
    prefix = questions.read(pipe.PREFIX.size)
    if len(prefix) < pipe.PREFIX.size:
        return None
    return pipe.question(questions.read(pipe.body_bytes(prefix)))


def _say(answers: Any, answer: pipe.Answer) -> None:
    try:
        answers.write(pipe.pack(answer))
        answers.flush()
    except BrokenPipeError:
        sys.exit(0)
