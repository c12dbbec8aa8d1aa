"""Enrols again and again and is killed (SIGKILL) at every step once: one more file operation each time.

    python killed_enrolment.py task.json     {"tasks": [...], "renew": false}

Each task is a board of its own. After each kill: what there is must be usable, and asking again must succeed. Prints how
many steps there were.
"""

import json
import os
import signal
import ssl
import sys
from pathlib import Path

import msgspec

from shoal_agent.identity import child
from shoal_agent.identity.store import CERTIFICATE, KEY, IdentityStore
from shoal_agent.identity.task import Task

STEPS = frozenset(
    {"os.rename", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "socket.connect", "os.scandir"}
)


def is_step(event: str, arguments: tuple[object, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in STEPS


def killed_at(step: int, task: Task) -> bool:
    """Whether the attempt got so far."""
    pid = os.fork()
    if pid == 0:
        left = step

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if is_step(event, arguments):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(watch)
        outcome = child.attempt(task)
        os._exit(0 if outcome.kind == "issued" else 3)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"step {step}: {status}"
    return False


def check_usable(task: Task, *, must_be: bool, when: str) -> None:
    """What `current` leads to is a key and its certificate; before the first one there may be nothing."""
    store = IdentityStore(Path(task.state_dir))
    facts = store.facts()
    if facts is None:
        assert not must_be, f"{when}: no identity"
        assert not store.current.exists(), f"{when}: half an identity"
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(store.current / CERTIFICATE, store.current / KEY)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    renew = plan["renew"]
    for step, raw in enumerate(plan["tasks"]):
        task = msgspec.convert(raw, Task)
        before = None
        if renew:
            assert child.attempt(task).kind == "issued"
            before = IdentityStore(Path(task.state_dir)).facts()
        was_killed = killed_at(step, task)
        check_usable(task, must_be=renew or not was_killed, when=f"killed at {step}")
        if not was_killed:
            print(step)
            return
        outcome = child.attempt(task)
        assert outcome.kind == "issued", f"killed at {step}: {outcome}"
        check_usable(task, must_be=True, when=f"after {step}")
        after = IdentityStore(Path(task.state_dir)).facts()
        assert after is not None
        assert after != before, f"killed at {step}: nothing was renewed"
        issues = sorted(path.name for path in IdentityStore(Path(task.state_dir)).folder.iterdir())
        assert len(issues) <= 4, issues
    sys.exit("more steps than tasks")


main()
