"""Open Inference Protocol over HTTP: what clients ask, and what clients do that they should not."""

import asyncio
import json
import socket
import struct

import httpx
import pytest
from tests.shoal_agent.until import until
from tests.support.toy_models import LARGE, RELEASE, VERSION

import shoal_agent
from shoal_agent.local_api import http as http_module
from shoal_agent.local_api.http import MAX_HEAD_BYTES

INFER = "/v2/models/double/infer"
X = [1.0, 2.0, 3.0, 4.0]
ASK = {"id": "a1", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}


def with_bytes(numbers: list[float], **more) -> tuple[bytes, dict[str, str]]:
    """A request whose tensor follows its JSON, and the header that says where."""
    tensor = struct.pack(f"<{len(numbers)}f", *numbers)
    part = {"name": "x", "shape": [len(numbers) // 4, 4], "datatype": "FP32"}
    part["parameters"] = {"binary_data_size": len(tensor)}
    head = json.dumps({"inputs": [part], **more}).encode()
    return head + tensor, {"Inference-Header-Content-Length": str(len(head))}


# ------------------------------------------------------------------ questions
async def test_the_server_says_what_it_is_and_which_extension_it_speaks(client):
    answer = await client.get("/v2")
    assert answer.status_code == 200
    assert answer.json() == {
        "name": "shoal-agent",
        "version": shoal_agent.__version__,
        "extensions": ["binary_tensor_data"],
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["date"].endswith("GMT")


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/double/ready"])
async def test_health_is_a_status_200(client, path):
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/double", f"/v2/models/double/versions/{VERSION}"])
async def test_a_model_tells_its_tensors_and_its_version(client, path):
    assert (await client.get(path)).json() == {
        "name": "double",
        "versions": [VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "n", "datatype": "INT64", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/models/double", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models/double/config", 404),
        ("GET", "/v2/models/absent", 404),
        ("GET", "/v2/models/absent/ready", 404),
        ("GET", "/v2/models/double/versions/7", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/models/%ff", 400),
        ("GET", "/v2/" + "a" * 2000, 400),
        ("GET", "/v2/ws", 426),
    ],
)
async def test_what_is_not_there_is_refused_and_the_connection_stays(client, method, path, status):
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert (await client.get("/v2/health/live")).status_code == 200
    assert answer.headers.get("connection") != "close"


# ------------------------------------------------------------------ inference
async def test_an_inference_in_json_is_answered_in_json(client, models):
    answer = await client.post(INFER, json=ASK)
    assert answer.json() == {
        "model_name": "double",
        "model_version": VERSION,
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2, 4, 6, 8]},
            {"name": "n", "datatype": "INT64", "shape": [1], "data": [0]},
        ],
        "id": "a1",
        "parameters": {"served_by": "board-1"},
    }
    assert models.asked[0].priority == 1
    assert models.asked[0].deadline_s == 5.0


async def test_nested_data_means_the_same_as_flat_data(client):
    nested = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [X, X]}
    answer = await client.post(INFER, json={"inputs": [nested]})
    assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8] * 2


async def test_tensors_as_bytes_are_answered_as_bytes_where_that_is_asked_for(client):
    body, headers = with_bytes(X * 2, parameters={"binary_data_output": True})
    answer = await client.post(INFER, content=body, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    cut = int(answer.headers["inference-header-content-length"])
    y, n = json.loads(answer.content[:cut])["outputs"]
    assert y["parameters"] == {"binary_data_size": 32}
    assert n["parameters"] == {"binary_data_size": 16}
    assert struct.unpack("<8f2q", answer.content[cut:]) == (*([2, 4, 6, 8] * 2), 0, 1)


async def test_each_output_is_in_the_form_that_was_asked_for_it(client):
    outputs = [
        {"name": "n"},
        {"name": "y", "parameters": {"binary_data": True}},
    ]
    answer = await client.post(INFER, json={**ASK, "outputs": outputs})
    cut = int(answer.headers["inference-header-content-length"])
    n, y = json.loads(answer.content[:cut])["outputs"]
    assert (n["name"], n["data"]) == ("n", [0])
    assert "data" not in y
    assert struct.unpack("<4f", answer.content[cut:]) == (2, 4, 6, 8)


async def test_priority_and_timeout_are_what_triton_means_by_them(client, models):
    for priority, timeout in ((0, 0), (1, 250_000), (2, 1), (7, 10**12)):
        parameters = {"priority": priority, "timeout": timeout}
        assert (await client.post(INFER, json={**ASK, "parameters": parameters})).is_success
    assert [(asked.priority, asked.deadline_s) for asked in models.asked] == [
        (1, 5.0),
        (2, 0.25),
        (1, 1e-6),
        (0, 60.0),
    ]


async def test_a_version_that_does_not_serve_is_not_found(client):
    for version, status in ((VERSION, 200), (RELEASE.hex(), 200), ("1", 404)):
        path = f"/v2/models/double/versions/{version}/infer"
        assert (await client.post(path, json=ASK)).status_code == status


@pytest.mark.parametrize(
    ("model", "status", "retry_after"),
    [
        ("absent", 404, None),
        ("busy", 429, "2"),
        ("late", 504, None),
        ("lost", 503, "1"),
        ("bug", 500, None),
    ],
)
async def test_why_nobody_served_is_a_status(client, model, status, retry_after):
    answer = await client.post(f"/v2/models/{model}/infer", json=ASK)
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == retry_after
    assert "Traceback" not in answer.text
    assert "thought" not in answer.json()["error"]


async def test_what_json_cannot_write_is_refused_and_goes_as_bytes(client):
    refused = await client.post("/v2/models/nan/infer", json=ASK)
    assert refused.status_code == 500
    assert "binary" in refused.json()["error"]
    body, headers = with_bytes(X, parameters={"binary_data_output": True})
    assert (await client.post("/v2/models/nan/infer", content=body, headers=headers)).is_success


@pytest.mark.parametrize("said", ["lots", "-1", "+3", "9" * 13, "999"])
async def test_a_wrong_length_of_the_json_is_a_bad_request(client, said):
    body, _ = with_bytes(X)
    headers = {"Inference-Header-Content-Length": said}
    answer = await client.post(INFER, content=body, headers=headers)
    assert answer.status_code == 400


async def test_a_compressed_body_is_refused(client):
    answer = await client.post(INFER, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


async def test_a_chunked_body_is_a_body(client):
    async def pieces():
        for byte in json.dumps(ASK).encode():
            yield bytes([byte])

    assert (await client.post(INFER, content=pieces())).is_success


# ------------------------------------------------------------------ many
async def test_requests_one_behind_the_other_on_one_line_are_answered_in_order(line):
    reader, writer = line
    body = json.dumps(ASK).encode()
    ask = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
    writer.write(ask % (INFER.encode(), len(body), body) * 3)
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answers = (await reader.read()).split(b"HTTP/1.1 200 ")
    assert [b'"data":[2.0,4.0' in answer for answer in answers] == [False, True, True, True, False]
    assert answers[-1].endswith(b'{"live":true}')


async def test_a_client_of_http_1_0_is_answered_and_left(line):
    reader, writer = line
    writer.write(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert (await reader.read()).endswith(b'{"live":true}')


async def test_who_waits_for_a_word_before_the_body_gets_it(line):
    reader, writer = line
    body = json.dumps(ASK).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        % (INFER.encode(), len(body))
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_who_goes_away_takes_the_request_along(line, models):
    _, writer = line
    body = json.dumps(ASK).encode()
    writer.write(
        b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    await until(lambda: models.asked)
    writer.close()
    await until(lambda: models.cancelled == ["slow"])


@pytest.mark.parametrize("end", [b"close", b"keep-alive"])
async def test_who_goes_away_just_before_the_answer_harms_nobody_else(client, api, models, end):
    body = json.dumps(ASK).encode()
    with socket.create_connection(("127.0.0.1", api.port)) as gone:
        models.before_answer = gone.close
        gone.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (INFER.encode(), end, len(body), body)
        )
        await until(lambda: api.stats.answers[200] == 1)
        await until(lambda: not api.connections)
    models.before_answer = lambda: None
    assert (await client.post(INFER, json=ASK)).is_success


# ------------------------------------------------------------------ hostile
@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a\r\nOrigin: http://b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /" + b"a" * (2 * MAX_HEAD_BYTES),
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * (2 * MAX_HEAD_BYTES),
    ],
)
async def test_what_is_no_http_is_refused_and_the_line_closed(line, client, sent):
    reader, writer = line
    writer.write(sent)
    assert (await reader.read()).startswith(b"HTTP/1.1 4")
    assert (await client.get("/v2/health/live")).is_success


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(open_api, models, is_chunked):
    async with open_api(models, max_body_bytes=1024) as api:

        async def pieces():
            for _ in range(2):
                yield b"a" * 1024

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}") as client:
            answer = await client.post(INFER, content=pieces() if is_chunked else b"a" * 2048)
        assert answer.status_code == 413
        assert models.asked == []


async def test_bodies_that_together_are_too_much_are_refused_for_the_moment(open_api, models):
    async with open_api(models, max_body_bytes=1 << 20) as api:
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        held = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(4)]
        for _, writer in held:
            writer.write(head % (INFER.encode(), 1 << 20))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}") as client:
            await until(lambda: api.held_bytes == 4 << 20)
            answer = await client.post(INFER, json=ASK)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            for _, writer in held:
                writer.close()
            await until(lambda: api.held_bytes == 0)
            assert (await client.post(INFER, json=ASK)).is_success


async def test_one_more_than_may_be_connected_is_turned_away_unless_somebody_idles(
    open_api, models
):
    async with open_api(models, max_connections=2) as api:
        lines = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(2)]
        for _, writer in lines:
            writer.write(b"GET /v2/health/live HTTP/1.1\r\n")  # a head that has no end
        await until(lambda: api.stats.connections == 2)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}") as client:
            await asyncio.gather(*(writer.drain() for _, writer in lines))
            turned_away = await client.get("/v2")
            assert (turned_away.status_code, turned_away.headers["retry-after"]) == (503, "1")
            # One of them becomes idle, and makes room.
            lines[0][1].write(b"Host: localhost\r\n\r\n")
            await lines[0][0].readuntil(b"}")
            assert (await client.get("/v2")).is_success
            assert await lines[0][0].read() == b""
        for _, writer in lines:
            writer.close()


async def test_a_head_or_a_body_that_does_not_come_is_given_up(open_api, models, monkeypatch):
    monkeypatch.setattr(http_module, "GRACE_S", 0.05)
    monkeypatch.setattr(http_module, "time_for", lambda _: 0.05)
    async with open_api(models) as api:
        for begun in (
            b"GET /v2 HTTP/1.1\r\nHost:",
            b"POST /v2/models/double/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(begun)
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()


async def test_who_says_nothing_is_left_after_a_while(open_api, models, monkeypatch):
    monkeypatch.setattr(http_module, "IDLE_S", 0.05)
    async with open_api(models) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        assert await reader.read() == b""
        writer.close()


async def test_who_does_not_read_the_answer_is_cut_off(open_api, models, monkeypatch):
    monkeypatch.setattr(http_module, "time_for", lambda _: 0.2)
    async with open_api(models) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=1024)
        body, headers = with_bytes(X, parameters={"binary_data_output": True})
        lines = ["POST /v2/models/large/infer HTTP/1.1", "Host: localhost"]
        lines += [f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "\r\n"]).encode() + body)
        await until(lambda: api.stats.answers[200] == 1)
        await until(lambda: api.held_bytes == 0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(LARGE)
        writer.close()
