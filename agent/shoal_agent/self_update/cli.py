"""`shoal-agent-switch`: what shoal-agent-switch.service runs as root, from the current release tree."""

import argparse
import platform
import subprocess
import sys
from pathlib import Path

from shoal_agent import plain_imports  # noqa: F401 - before everything else of ours
from shoal_agent.errors import AgentError
from shoal_agent.self_update.request import FOLDER
from shoal_agent.self_update.switcher import Surroundings, Switcher
from shoal_broker import logs
from shoal_contract.exits import Exit

RESTART_TIMEOUT_S = 180.0


def main() -> None:
    """Do what is to be done, and end."""
    options = _parser().parse_args()
    logs.configure(log_format="auto", verbose=False)
    around = Surroundings(
        home=options.home,
        folder=options.state / FOLDER,
        root_file=options.root_file,
        restart=lambda: restart(options.systemctl, options.unit),
        limit_s=options.limit_s,
        keep=options.keep,
        machine=platform.machine(),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
    )
    try:
        Switcher(around).run()
    except (AgentError, OSError) as exc:
        print(f"shoal-agent-switch: {exc}", file=sys.stderr)
        sys.exit(Exit.FAILED)


def restart(systemctl: Path, unit: str) -> None:
    """Restart the agent with the unit of its tree.

    Raises:
        OSError: the service manager does not do it.
    """
    # Not waited for: a new agent that never gets ready is the trial's matter, and has the trial's time.
    for arguments in (("daemon-reload",), ("restart", "--no-block", unit)):
        try:
            done = subprocess.run(
                [systemctl, *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=RESTART_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as exc:
            raise OSError(f"systemctl {arguments[0]} hangs") from exc
        if done.returncode:
            raise OSError(f"systemctl {arguments[0]}: {done.stderr.strip()[:200]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-agent-switch",
        description="Switches to the release tree that the agent asks for, if the fleet signed it; goes back if it fails.",
        epilog="example: /opt/shoal/current/bin/shoal-agent-switch --root-file /opt/shoal/current/etc/root.json",
    )
    parser.add_argument("--home", type=Path, default=Path("/opt/shoal"), help="of the trees")
    parser.add_argument(
        "--state", type=Path, default=Path("/var/lib/shoal"), help="the agent's state directory"
    )
    parser.add_argument(
        "--root-file", type=Path, required=True, help="the root of the update metadata"
    )
    parser.add_argument("--unit", default="shoal-agent.service", help="the agent's unit")
    parser.add_argument("--limit-s", type=float, default=300.0, help="time to get healthy")
    parser.add_argument("--keep", type=int, default=3, help="so many trees stay")
    parser.add_argument(
        "--systemctl", type=Path, default=Path("/usr/bin/systemctl"), help="the service manager's"
    )
    return parser
