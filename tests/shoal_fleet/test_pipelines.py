"""`shoal pipeline`: what is wanted on which nodes, what is refused before it goes out, and what nodes are told."""

import json

import msgspec
import pytest
from tests.shoal_fleet.test_cli import shoal
from tests.support import picture_releases

from shoal_contract import messages
from shoal_contract.messages import Pipelines, PipelineState
from shoal_fleet import digits
from shoal_fleet import pipelines as book
from shoal_fleet.errors import RequestError
from shoal_fleet.pipelines import Target
from shoal_fleet.registry import Node
from shoal_fleet.releases import Releases

CLIMATE = """
[[pipeline]]
stream = "climate"
model = "climate"
[pipeline.topic]
filter = "zigbee2mqtt/+"
values = ["$.temperature"]
"""
METER = """
[[pipeline]]
stream = "meter"
device = "meter"
channel = 1
model = "digits"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "pipelines.toml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


async def document(site, node, version: int = 0) -> Pipelines:
    """What the node was told last, once that is newer than `version`."""

    def told() -> Pipelines | None:
        if node.wanted is None or not node.wanted.pipelines:
            return None
        found = messages.decode_as(node.wanted.pipelines, Pipelines)
        return found if found.version > version else None

    await site.until(lambda: told() is not None)
    found = told()
    assert found is not None
    return found


def names(found: Pipelines) -> list[str]:
    return [one.stream for one in found.pipelines]


async def test_a_pipeline_is_set_for_a_node_listed_changed_and_removed(site, write):
    (node,) = await site.nodes(1)
    code, out, _ = await shoal(site, "pipeline", "set", write(CLIMATE + METER), "--node", "n0")
    assert (code, out) == (0, "node n0: climate, meter; 1 node is told\n")
    first = await document(site, node)
    assert names(first) == ["climate", "meter"]
    assert first.pipelines[0].table == {
        "stream": "climate",
        "model": "climate",
        "topic": {"filter": "zigbee2mqtt/+", "values": ["$.temperature"]},
    }
    _, out, _ = await shoal(site, "pipeline", "list")
    rows = [line.split("\t") for line in out.splitlines()]
    assert rows[0] == ["for", "pipeline", "from", "model", "since"]
    assert [row[:4] for row in rows[1:3]] == [
        ["node n0", "climate", "topic zigbee2mqtt/+", "climate"],
        ["node n0", "meter", "device meter", "digits"],
    ]
    changed = CLIMATE.replace("zigbee2mqtt/+", "tasmota/+")
    await shoal(site, "pipeline", "set", write(changed), "--node", "n0")
    second = await document(site, node, first.version)
    assert names(second) == ["climate", "meter"]
    assert second.pipelines[0].table["topic"]["filter"] == "tasmota/+"
    code, out, _ = await shoal(site, "pipeline", "remove", "climate", "--node", "n0", "--json")
    assert json.loads(out) == {"target": "node n0", "streams": ["climate"], "nodes": ["n0"]}
    assert names(await document(site, node, second.version)) == ["meter"]
    code, _, error = await shoal(site, "pipeline", "remove", "climate", "--node", "n0")
    assert (code, error) == (1, "node n0 has no pipeline 'climate'")


async def test_a_groups_pipelines_come_with_the_label_and_go_with_it(site, write):
    first, second = await site.nodes(2)
    await shoal(site, "nodes", "label", "n0", "site=oslo")
    _, out, _ = await shoal(site, "pipeline", "set", write(CLIMATE), "--group", "site=oslo")
    assert out == "group site=oslo: climate; 1 node is told\n"
    assert names(await document(site, first)) == ["climate"]
    assert second.wanted is None
    await shoal(site, "nodes", "label", "n1", "site=oslo")
    told = await document(site, second)
    assert names(told) == ["climate"]
    await shoal(site, "nodes", "label", "n1", "site-")
    assert names(await document(site, second, told.version)) == []


async def test_a_node_that_comes_later_is_told_what_everybody_runs(site, write):
    await shoal(site, "pipeline", "set", write(CLIMATE), "--group", "all")
    (node,) = await site.nodes(1)
    assert names(await document(site, node)) == ["climate"]


async def test_what_is_nearest_to_a_node_holds(site, write):
    (node,) = await site.nodes(1)
    await shoal(site, "nodes", "label", "n0", "site=oslo", "hw=rpi4")
    held = ""
    version = 0
    for place in (
        ("--group", "all"),
        ("--group", "site=oslo"),
        ("--group", "hw=rpi4,site=oslo"),
        ("--node", "n0"),
    ):
        held = f"from/{place[1]}/x".replace(",", "/")
        text = CLIMATE.replace("zigbee2mqtt/+", held)
        await shoal(site, "pipeline", "set", write(text), *place)
        found = await document(site, node, version)
        version = found.version
        assert [one.table["topic"]["filter"] for one in found.pipelines] == [held]
    # A wider one changes nothing for this node.
    text = CLIMATE.replace("zigbee2mqtt/+", "wide")
    await shoal(site, "pipeline", "set", write(text), "--group", "all")
    found = await document(site, node, version)
    assert found.pipelines[0].table["topic"]["filter"] == held
    await shoal(site, "pipeline", "remove", "climate", "--node", "n0")
    found = await document(site, node, found.version)
    assert found.pipelines[0].table["topic"]["filter"] == "from/hw=rpi4/site=oslo/x"


async def test_pipelines_are_still_wanted_after_a_restart_of_the_controller(quiet_site, write):
    site = quiet_site
    async with site.controlled():
        await site.nodes(1)
        await shoal(site, "pipeline", "set", write(CLIMATE), "--node", "n0")
        await shoal(site, "pipeline", "set", write(METER), "--group", "all")
        await shoal(site, "pipeline", "remove", "meter", "--group", "all")
    async with site.controlled():
        _, out, _ = await shoal(site, "pipeline", "list", "--json")
        found = json.loads(out)
        assert [one["stream"] for one in found["pipelines"]] == ["climate"]
        assert found["nodes"]["n0"]["wanted"] == ["climate"]
        # Not empty: who had it is told that it has gone.
        assert not site.controller.pipelines.is_empty()
        await site._nodes.aclose()


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        (CLIMATE, ("--node", "nobody"), "there is no node 'nobody'"),
        (CLIMATE, (), "for a node or for a group"),
        (CLIMATE, ("--node", "n0", "--group", "all"), "for a node or for a group"),
        (CLIMATE, ("--group", "a=b=c,"), "is not a label"),
        (CLIMATE + CLIMATE, ("--node", "n0"), "two of these pipelines have one stream"),
        (METER.replace('"meter"', '"valve"'), ("--node", "n0"), "'valve' is not a [[device]]"),
        (CLIMATE.replace("zigbee2mqtt/+", "a/#/b"), ("--node", "n0"), "'#' stands alone"),
        (CLIMATE.replace("$.temperature", "temperature"), ("--node", "n0"), "is no path"),
        (CLIMATE + "colour = 1", ("--node", "n0"), "unknown key `colour`"),
        ("", ("--node", "n0"), "missing key `pipeline`"),
        ("[[pipeline]", ("--node", "n0"), "not TOML"),
    ],
)
async def test_what_cannot_run_is_refused_in_one_line(site, write, text, place, says):
    await site.nodes(1)
    code, _, error = await shoal(site, "pipeline", "set", write(text), *place)
    # The file's own fault is found before anybody is asked.
    assert code == (2 if "pipelines.toml: " in error else 1)
    assert says in error
    assert "\n" not in error
    assert site.controller.pipelines.is_empty()


async def test_a_file_that_is_not_there_is_a_wrong_command_line(site, tmp_path):
    code, _, error = await shoal(site, "pipeline", "set", str(tmp_path / "none"), "--node", "n0")
    assert (code, error) == (2, f"{tmp_path}/none: No such file or directory")


async def test_what_does_not_fit_the_release_is_refused_before_it_goes_out(
    site, write, monkeypatch
):
    await site.nodes(1)
    spec = picture_releases.items("[1]", "f32")

    class Known:
        name, id = "climate", b"c" * 32

    async def list_all(_self):
        return [Known]

    async def spec_of(_self, _release):
        return spec

    monkeypatch.setattr(Releases, "list_all", list_all)
    monkeypatch.setattr(Releases, "spec", spec_of)
    units = CLIMATE + 'units = ["K"]\n'
    code, _, error = await shoal(site, "pipeline", "set", write(units), "--node", "n0")
    assert code == 1
    assert error == (
        "pipeline 'climate': $.temperature: 'K' is not '0..255', and does not become it"
        " (which parts@1.0.0 wants)"
    )
    code, _, _ = await shoal(site, "pipeline", "set", write(CLIMATE), "--node", "n0")
    assert code == 0


async def test_a_real_release_is_asked_for_its_description(site, tmp_path, write):

    await site.nodes(1)
    await site.add_release(digits.release_dir(1))
    pictures = """
[[pipeline]]
stream = "labels"
model = "digits"
[pipeline.images]
path = "/var/spool/labels"
[pipeline.prepare]
colour = "rgb"
"""
    code, _, error = await shoal(site, "pipeline", "set", write(pictures), "--node", "n0")
    assert code == 1
    assert "colour 'rgb' does not have the 1 channels of [1, 8, 8]" in error


async def test_a_release_that_a_pipeline_there_could_not_read_is_not_rolled_out(site, write):
    await site.nodes(2)
    await shoal(site, "nodes", "label", "n0", "site=oslo")
    # Nobody knows the model yet, so nothing speaks against it.
    text = CLIMATE.replace('model = "climate"', 'model = "digits"')
    assert (await shoal(site, "pipeline", "set", write(text), "--group", "site=oslo"))[0] == 0
    added = await site.add_release(digits.release_dir(1))
    says = (
        "pipeline 'climate' of n0 cannot read it:"
        " [pipeline.topic] encoding 'f32': digits@1.0.0 reads 'u5'"
    )
    started = await site.api.post("/api/rollouts", json={"release": added["id"]})
    assert (started.status_code, started.json()["error"]) == (400, says)
    wanted = await site.api.put("/api/nodes/n0/models/digits", json={"release": added["id"]})
    assert (wanted.status_code, wanted.json()["error"]) == (400, says)
    elsewhere = await site.api.put("/api/nodes/n1/models/digits", json={"release": added["id"]})
    assert elsewhere.status_code == 200


async def test_what_nodes_say_of_their_pipelines_is_listed(site, write):
    await site.nodes(1)
    state = PipelineState("climate", from_fleet=True, running=False, reason="no\x1b[31m release")
    known = site.controller.registry
    reported = known.nodes["n0"].reported

    await known.reported(
        "n0", msgspec.structs.replace(reported, pipelines=[state], pipelines_version=7)
    )
    _, out, _ = await shoal(site, "pipeline", "list", "--node", "n0")
    assert out.splitlines()[-1].split("\t") == [
        "n0", "climate", "fleet's", "no", "no�[31m release",
    ]  # fmt: skip
    found = (await site.api.get("/api/nodes/n0")).json()["reported"]
    assert found["pipelines_version"] == 7
    assert found["pipelines"][0]["running"] is False


async def test_more_than_a_node_can_be_told_is_refused(site, monkeypatch):
    await site.nodes(1)
    tables = [
        {"stream": f"s{number}", "model": "m", "topic": {"filter": "a", "values": ["$"]}}
        for number in range(64)
    ]
    answer = await site.api.put("/api/pipelines", json={"node": "n0", "pipelines": tables})
    assert answer.status_code == 200, answer.text
    answer = await site.api.put(
        "/api/pipelines", json={"group": "all", "pipelines": [tables[0] | {"stream": "more"}]}
    )
    assert answer.status_code == 400
    assert answer.json()["error"] == "n0 would have 65 pipelines; 64 may be"
    monkeypatch.setattr(book, "MAX_DOCUMENT_BYTES", 100)
    answer = await site.api.put("/api/pipelines", json={"node": "n0", "pipelines": tables[:1]})
    assert "bytes; 100 may be" in answer.json()["error"]


@pytest.mark.parametrize("text", ["node press-4", "group all", "group hw=rpi4,site=oslo"])
def test_a_target_is_what_its_text_says(text):
    assert Target.parse(text).text == text


def test_a_group_in_any_order_is_the_same_target():
    one = Target.of(node=None, group="site=oslo,hw=rpi4")
    assert one == Target.of(node=None, group="hw=rpi4, site=oslo")
    assert one.has(Node(name="a", first_seen_ms=0, labels={"hw": "rpi4", "site": "oslo"}))
    assert not one.has(Node(name="a", first_seen_ms=0, labels={"hw": "rpi4"}))
    with pytest.raises(RequestError):
        Target.of(node=None, group=None)
