"""ONNX files that are nearly right: each is admitted or refused with a reason, and nothing else happens."""

import pytest
from tests.support import mutated_models
from tests.support.judged_models import TRIAL_BYTES, Judge, Judged, status_bytes

FEW = 200
MANY = 10_000
SLACK_BYTES = 64 << 20
"""What a process has that the limit does not count: files that are mapped, what was there before."""


async def judged(folder, numbers, say=print) -> Judged:
    before_bytes = status_bytes("self", "VmRSS")
    judge = Judge(folder)
    try:
        for number in numbers:
            await judge.judge(number)
            if number % 1000 == 999:
                say(f"{number + 1}: {dict(judge.judged.outcomes)}")
    finally:
        await judge.close()
    found = judge.judged
    say(f"\n{len(numbers)} models: {dict(found.outcomes)}; {found.processes} processes")
    say(f"a trial's process grew by {found.peak_bytes >> 20} MiB at most")
    for reason, count in found.reasons.most_common(25):
        say(f"{count:6} {reason}")
    assert found.unreasoned == []
    ends = [
        *("admitted", "refused unseen", "refused in the trial", "ended its process twice"),
        "refused on the whole way",
    ]
    assert sum(found.outcomes[end] for end in ends) == len(numbers)
    assert found.peak_bytes <= TRIAL_BYTES + SLACK_BYTES
    assert status_bytes("self", "VmRSS") - before_bytes <= SLACK_BYTES
    return found


def test_the_models_that_are_spoilt_are_good_ones():
    first, *others = mutated_models.bases()
    assert all(base != first for base in others)
    assert mutated_models.mutated(first, 7) == mutated_models.mutated(first, 7)
    spoilt = {mutated_models.mutated(first, number) for number in range(100)}
    assert len(spoilt) > 80


async def test_unspoilt_they_are_all_admitted(tmp_path, monkeypatch):
    monkeypatch.setattr(mutated_models, "mutated", lambda base, number: base)
    found = await judged(tmp_path, range(1, 6))
    assert found.outcomes["admitted"] == 5


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_some_spoilt_models_are_admitted_or_refused_with_a_reason(tmp_path):
    found = await judged(tmp_path, range(FEW))
    assert found.outcomes["refused unseen"] > FEW / 10
    assert found.outcomes["refused in the trial"] > FEW / 10


@pytest.mark.long
@pytest.mark.timeout(5400)
async def test_ten_thousand_spoilt_models_are_admitted_or_refused_with_a_reason(tmp_path, capsys):
    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    await judged(tmp_path, range(MANY), say)
