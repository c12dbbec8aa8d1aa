import asyncio
import json
import signal
import socket
import subprocess
import sys
import time

import msgspec
import pytest
from typer.testing import CliRunner

from shoal_contract.exits import Exit
from shoal_contract.messages import ModelState, Phase
from shoal_fleet import cli, cli_output, digits
from shoal_fleet.errors import FleetError, UsageError


def invoke(site, *args):
    """The command as `main` would end it: (exit code, stdout, error line)."""
    found = CliRunner().invoke(
        cli.app, [*map(str, args)], env={"SHOAL_STATE_DIR": str(site.state_dir)}
    )
    if isinstance(found.exception, FleetError):
        return int(found.exception.exit_code), found.stdout, str(found.exception)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


async def shoal(site, *args):
    return await asyncio.to_thread(invoke, site, *args)


async def test_a_node_shows_where_a_model_is_and_what_it_took(site):
    (node,) = await site.nodes(1)
    serving = ModelState("digits", bytes(32), "1.0.0", bytes(32), Phase.SERVING)
    node.models["digits"] = msgspec.structs.replace(
        serving, residence="evicted", resident_bytes=3 << 20, peak_bytes=9 << 20, p95_us=1500
    )
    node.models["old"] = msgspec.structs.replace(serving, model="old")
    await node.report()

    await site.until(lambda: site.controller.registry.get("n0").model("digits"))
    _, out, _ = await shoal(site, "nodes", "show", "n0")
    lines = out.splitlines()
    at = lines.index("digits: 1.0.0")
    assert lines[at + 1] == "  evicted, 3.1 MB of memory, 9.4 MB at most, 1.5 ms an input (p95)"
    assert "old: 1.0.0" in lines


async def test_nodes_are_shown_and_labelled(site):
    await site.nodes(2)
    code, out, _ = await shoal(site, "nodes")
    assert code == 0
    head, first, _ = out.splitlines()
    assert head.split("\t")[:3] == ["node", "online", "models"]
    row = first.split("\t")
    assert row[0:2] == ["n0", "yes"]
    assert row[3:8] == ["Raspberry Pi 4", "Debian 12", "9.7 GB", "48.5 °C", "no"]
    _, out, _ = await shoal(site, "nodes", "label", "n0", "site=oslo", "line=2")
    assert out == "n0: line=2, site=oslo\n"
    _, out, _ = await shoal(site, "nodes", "label", "n0", "line-")
    assert out == "n0: site=oslo\n"
    _, out, _ = await shoal(site, "nodes", "--json")
    assert json.loads(out)[0]["labels"] == {"site": "oslo"}
    code, _, error = await shoal(site, "nodes", "label", "nobody", "a=b")
    assert (code, error) == (1, "there is no node 'nobody' (shoal nodes lists them)")


async def test_a_command_is_sent_followed_and_its_result_printed(site):
    (node,) = await site.nodes(1)
    code, out, _ = await shoal(site, "send", "n0", "ping", "n=1", "on=true", "text=a b")
    assert code == 0
    assert json.loads(out) == {"pong": {"n": 1, "on": True, "text": "a b"}}
    code, out, _ = await shoal(site, "send", "n0", "ping", "--json")
    assert json.loads(out)["state"] == "succeeded"
    code, _, error = await shoal(site, "send", "n0", "fail")
    assert (code, error) == (1, "fail failed: the valve is stuck")
    code, _, error = await shoal(site, "send", "n0", "slow", "--timeout", "0.2")
    assert code == Exit.TIMED_OUT
    assert "is running after 0.2 s" in error
    code, _, _ = await shoal(site, "send", "n0", "ping", "noequals")
    assert code == Exit.USAGE
    code, out, _ = await shoal(site, "send", "n0", "slow", "--no-wait")
    await site.until(lambda: bytes.fromhex(out.strip()) in node.running)
    code, out, _ = await shoal(site, "cancel", out.strip())
    assert (code, out) == (0, "cancelled\n")
    _, out, _ = await shoal(site, "history", "n0", "--json")
    assert len(json.loads(out)) == 5
    _, out, _ = await shoal(site, "history")
    assert "the valve is stuck" in out


async def test_operations_and_log_lines_of_a_node(site):
    await site.nodes(1)
    _, out, _ = await shoal(site, "ops", "n0")
    assert "ping\tread\t\t30.0 s\tAnswer." in out
    _, out, _ = await shoal(site, "logs", "n0", "-n", "2")
    assert out == "line 0\nline 1\n"


async def test_a_release_is_added_and_rolled_out(site):
    await site.nodes(1)
    directory = digits.release_dir(1)
    code, out, _ = await shoal(site, "release", "add", directory)
    assert code == 0
    assert out.startswith("digits@1.0.0 ")
    _, out, _ = await shoal(site, "release", "list")
    assert "accuracy 0.9447" in out
    code, out, _ = await shoal(site, "rollout", "start", "digits@1.0.0", "--wait")
    assert code == 0
    assert out.splitlines()[-1].endswith("done, wave 1: 1 serving (1 of 1 nodes serve it)")
    _, out, _ = await shoal(site, "rollout", "list")
    assert "\tdone\t1\t1\t0\t" in out
    _, out, _ = await shoal(site, "rollout", "show", "1")
    assert "wave 1 opens with 6 leases" in out
    code, _, error = await shoal(site, "rollout", "stop", "1")
    assert (code, error) == (1, "rollout 1 has ended: it is done")
    _, out, _ = await shoal(site, "want", "n0", "digits=none", "--json")
    assert json.loads(out)["wanted"] == {}
    _, out, _ = await shoal(site, "status")
    assert "nodes: 1 of 1 online, silent: none" in out
    _, out, _ = await shoal(site, "readings", "summary", "--json")
    assert json.loads(out)["total"] == 0


async def test_a_rollout_is_planned_by_what_its_boards_have_before_anything_is_made(site):
    one, two = [await site.add_release(digits.release_dir(n)) for n in (1, 2)]
    nodes = await site.nodes(3)
    for name, release in (("n0", one), ("n1", two)):
        await shoal(site, "want", name, f"digits={release['title']}")
        model = bytes.fromhex(release["model_file"])
        await site.until(
            lambda name=name, model=model: (
                (state := site.controller.registry.nodes[name].model("digits")) is not None
                and state.model_file == model
            )
        )
    code, out, _ = await shoal(site, "rollout", "plan", two["title"], "--json")
    found = json.loads(out)
    assert code == 0
    full = found["full_bytes"]
    rows = {row["base"]: row for row in found["bases"]}
    assert rows.keys() == {one["model_file"], two["model_file"], ""}
    guess = rows[one["model_file"]]
    assert (guess["title"], guess["boards"], guess["is_exact"]) == ("digits@1.0.0", 1, False)
    assert 0 < guess["total_bytes"] < 0.5 * full
    assert rows[two["model_file"]]["total_bytes"] == 0
    assert rows[""]["total_bytes"] == full
    assert found["total_bytes"] == guess["total_bytes"] + full
    assert (found["boards"], found["full_total_bytes"]) == (3, 2 * full)
    assert await site.controller.deltas.offers(bytes.fromhex(two["model_file"])) == []
    _, out, _ = await shoal(site, "rollout", "plan", two["title"])
    row = next(line for line in out.splitlines() if line.startswith(one["model_file"][:12]))
    assert row.split("\t")[1:4] == [
        "digits@1.0.0",
        "1",
        "~" + cli_output.size(guess["delta_bytes"]),
    ]
    assert out.splitlines()[-1].startswith("digits@1.1.0 to 3 boards: ~")
    rollout = (await shoal(site, "rollout", "start", two["title"], "--wait", "--json"))[1]
    (delta,) = json.loads(rollout)["deltas"]
    # The slow coders of a small model find more than an estimate looks for.
    assert 0.75 * guess["delta_bytes"] <= delta["size_bytes"] <= 1.05 * guess["delta_bytes"]
    await site.until(lambda: all(node.models["digits"].version == "1.1.0" for node in nodes))
    code, _, error = await shoal(site, "rollout", "plan", two["title"], "--group", "==")
    assert code == 1
    assert "is not a label" in error


async def test_a_rollout_that_is_held_ends_the_watch_with_the_reason(site):
    release = await site.add_release(digits.release_dir(1))
    (node,) = await site.nodes(1)
    node.fails[bytes.fromhex(release["id"])] = "golden outputs differ"
    code, _, error = await shoal(site, "rollout", "start", "digits@1.0.0", "--wait")
    assert code == 1
    assert error.startswith("rollout 1 is held: n0 failed: golden outputs differ")
    code, _, error = await shoal(site, "rollout", "watch", "--json")
    assert code == 1


async def test_a_directory_that_is_no_release_is_refused_in_one_line(site, tmp_path):
    code, _, error = await shoal(site, "release", "add", tmp_path)
    assert code == 1
    assert "there is no release.toml in it" in error


def run_shoal(*args, timeout_s=45):
    return subprocess.run(
        [sys.executable, "-m", "shoal_fleet", *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.system
def test_a_controller_that_is_not_there_is_exit_code_3_and_one_line(tmp_path):
    found = run_shoal("--state-dir", str(tmp_path), "nodes")
    assert found.returncode == Exit.UNREACHABLE
    assert found.stderr.startswith("shoal: ")
    assert found.stderr.count("\n") == 1
    (tmp_path / "token").write_text("x")
    found = run_shoal("--state-dir", str(tmp_path), "--url", "http://127.0.0.1:9", "nodes")
    assert found.returncode == Exit.UNREACHABLE
    assert found.stderr.startswith("shoal: no controller answers at http://127.0.0.1:9")
    assert found.stderr.count("\n") == 1


@pytest.mark.system
def test_serve_says_when_it_is_ready_and_leaves_at_sigterm(tmp_path, unused_port):
    ready = tmp_path / "ready"
    with subprocess.Popen(
        [
            sys.executable, "-m", "shoal_fleet", "serve", "--port", "0",
            "--broker", f"127.0.0.1:{unused_port}",
            "--state-dir", str(tmp_path / "state"), "--ready-file", str(ready),
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 10
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        said = json.loads(ready.read_text())
        assert said["pid"] == process.pid
        found = run_shoal("--state-dir", str(tmp_path / "state"), "status", "--json")
        status = json.loads(found.stdout)
        assert status["broker_connected"] is False
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "Traceback" not in log
        assert "broker not reached" in log


@pytest.mark.system
@pytest.mark.parametrize(
    ("config", "exit_code", "complaint"),
    [
        ("colour = 1", Exit.USAGE, "unknown key `colour`"),
        (
            "[listen]\nplaintext = true\nhost = '203.0.113.1'",
            Exit.FAILED,
            "cannot listen on 203.0.113.1",
        ),
        ("[broker]\npassword_file = '/none'", Exit.USAGE, "[broker] password_file"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(tmp_path, config, exit_code, complaint):
    path = tmp_path / "shoal.toml"
    path.write_text(config)
    found = run_shoal("--state-dir", str(tmp_path / "s"), "serve", "--config", str(path))
    assert found.returncode == exit_code
    assert complaint in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = "{'sqlalchemy', 'fastapi', 'uvicorn', 'onnxruntime', 'numpy', 'httpx', 'aiomqtt'}"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, shoal_fleet.cli; print({heavy} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "set()\n"


def commands(app, path=()):
    """Every command and sub-command."""
    for group in app.registered_groups:
        yield from commands(group.typer_instance, (*path, group.name))
    for command in app.registered_commands:
        yield (*path, command.name or command.callback.__name__.replace("_", "-"))


@pytest.mark.parametrize("path", list(commands(cli.app)), ids=" ".join)
def test_every_command_has_help_with_an_example(path):
    found = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": "120"})
    assert found.exit_code == 0
    assert f"Example: shoal {' '.join(path)}" in found.stdout
    # `decode` prints nothing else.
    assert "--json" in found.stdout or path in {("serve",), ("demo",), ("decode",)}


def test_what_a_node_says_cannot_steer_the_terminal(capsys):
    evil = "\x1b]0;mine\x07 \x9b2J\nsecond line"
    cli_output.print_table("T", ("reason",), [(evil,)])
    cli_output.print_json({"reason": evil})
    out = capsys.readouterr().out
    assert not set(out) & {"\x1b", "\x07", "\x9b"}
    assert out.count("\n") == 3
    assert json.loads(out.splitlines()[2]) == {"reason": evil}


def test_values_on_the_command_line_are_json_or_text():
    assert cli_output.parse_value("3.5") == 3.5
    assert cli_output.parse_value("null") is None
    assert cli_output.parse_value("[1,2]") == [1, 2]
    assert cli_output.parse_value("open") == "open"
    assert cli_output.parse_pairs(["a=b=c"]) == {"a": "b=c"}
    for wrong in (["a"], ["=b"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            cli_output.parse_pairs(wrong)


def test_times_and_sizes_are_for_people():
    assert cli_output.ago(0, 59_999) == "59 s ago"
    assert cli_output.ago(0, 7_200_000) == "2 h ago"
    assert cli_output.size(34_627) == "34.6 kB"
    assert cli_output.size(None) == "?"


@pytest.fixture
def unused_port():

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
