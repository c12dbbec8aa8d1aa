"""What a node does by itself, as a table: where it comes from, which model reads it, what follows.

The same table stands in a board's own configuration and in its wanted state. Whether its topics are topics is
`shoal_broker.pipeline_topics`' business, whether it fits a release that of `fitting`. Pure.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from shoal_contract import toml, topics
from shoal_contract.errors import ContractError, FileFormatError
from shoal_contract.images import ImageTable
from shoal_contract.json_path import parse_path
from shoal_contract.release import Encoding

Format = Literal["json", "cbor", "raw"]
PictureFormat = Literal["jpeg", "png", "webp", "bmp"]
Channel = Annotated[int, msgspec.Meta(ge=0, le=255)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]

MAX_PIPELINES: Final = 64
CAMERA_SCHEMES: Final = ("rtsp", "rtsps", "http", "https", "tcp", "udp")
_V4L2_DEVICE = re.compile(r"/dev/(video\d{1,3}|v4l/by-(id|path)/[\w.:-]{1,200})")
_MiB: Final = 1024 * 1024


class TopicTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.topic]: messages of any program as the source.

    `values` say where in a message ("json", "cbor") the model's numbers stand, in the model's order; a
    "raw" message is an item as it is. `encoding` is that of the release's [input], or "text": for a release of texts,
    `values` then lead to texts, and a raw message is one. `units`: one for all values or
    one each; `convert`: make them the release's.
    """

    filter: str
    format: Format = "json"
    values: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    convert: bool = False
    encoding: Encoding | Literal["text"] = "f32"
    wait_s: Seconds = 10.0
    retained: bool = False


class ImagesTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.images]: a file that is written anew, or every new file of a folder, as the source.

    `after`: what becomes of a picture that is done with.
    """

    path: str
    formats: Annotated[tuple[PictureFormat, ...], msgspec.Meta(min_length=1)] = ("jpeg", "png")
    poll_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 1.0
    after: Literal["keep", "delete"] = "keep"
    max_file_bytes: Annotated[int, msgspec.Meta(ge=1024, le=256 * _MiB)] = 16 * _MiB
    max_pixels: Annotated[int, msgspec.Meta(ge=64, le=1 << 28)] = 1 << 25
    decode_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 20.0
    memory_bytes: Annotated[int, msgspec.Meta(ge=128 * _MiB, le=1 << 40)] = 768 * _MiB


class CameraTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.camera]: a camera of this board (/dev/video0) or of the network (rtsp://...) as the source.

    `rate_hz`: so many pictures a second at most; always the newest one. `stall_s`: a camera that gives none for so long is
    opened anew. `options` are FFmpeg's, for its demuxer.
    """

    url: str
    username: str | None = None
    password_file: str | None = None
    format: Literal["v4l2", "rtsp", "mpegts", "mjpeg", "h264"] | None = None
    options: dict[str, str] = msgspec.field(default_factory=dict)
    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=120)] = 2.0
    open_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    stall_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    max_pixels: Annotated[int, msgspec.Meta(ge=64, le=1 << 28)] = 1 << 25
    memory_bytes: Annotated[int, msgspec.Meta(ge=128 * _MiB, le=1 << 40)] = 1024 * _MiB


class AnswerTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.answer]: how the output of a release of tensors is read, which says nothing of labels itself."""

    output: str
    labels: tuple[str, ...] = ()
    decode: Literal["softmax-argmax", "argmax"] = "softmax-argmax"


class CommandTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.command]: what a result makes a device do; without `device` the one that was measured.

    SET [channel, value, seq of the item, first four bytes of the release id]; the value is the
    label itself or, with "number", the integer that the label spells.
    """

    device: str | None = None
    channel: Channel
    value: Literal["number", "text"] = "number"


class PublishTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.publish]: the result for programs that know nothing of Shoal.

    In `topic`, {1} is what stood in place of the filter's first wildcard, {2} of its second ...
    """

    topic: str
    format: Literal["json", "label"] = "json"
    qos: Literal[0, 1] = 1
    retain: bool = False
    expiry_s: Annotated[float, msgspec.Meta(ge=1, le=400 * 86400)] | None = None


class FileTable(toml.Table, frozen=True, kw_only=True):
    """[pipeline.file]: the result as a line of JSON; a full file is renamed to PATH.1."""

    path: str
    max_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] = 16 * _MiB


class PipelineTable(toml.Table, frozen=True, kw_only=True):
    """[[pipeline]]: what is measured -> model -> reading on `stream`, and what follows.

    `units`: of what a device or a raw message holds. `keep_s`, `keep_bytes`: how long, and how much of the stream,
    waits for an uplink; the oldest goes first.
    """

    stream: str
    device: str | None = None
    channel: Channel | None = None
    topic: TopicTable | None = None
    images: ImagesTable | None = None
    camera: CameraTable | None = None
    prepare: ImageTable | None = None
    model: str
    input: str | None = None
    units: str | None = None
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0
    keep_s: Annotated[float, msgspec.Meta(ge=1, le=400 * 86400)] | None = None
    keep_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] | None = None
    answer: AnswerTable | None = None
    command: CommandTable | None = None
    publish: PublishTable | None = None
    file: FileTable | None = None


class PipelineFile(toml.Table, frozen=True, kw_only=True):
    """A file of [[pipeline]] tables alone, as `shoal pipeline set` takes it."""

    pipeline: Annotated[
        tuple[PipelineTable, ...], msgspec.Meta(min_length=1, max_length=MAX_PIPELINES)
    ]


def parse(table: Mapping[str, Any]) -> PipelineTable:
    """The pipeline that these plain values describe, checked by itself.

    Raises:
        ContractError: one line that names the key.
    """
    try:
        parsed = msgspec.convert(dict(table), PipelineTable)
    except msgspec.ValidationError as exc:
        raise FileFormatError(toml.in_words(str(exc))) from exc
    check(parsed)
    return parsed


def check(table: PipelineTable, devices: Collection[str] | None = None) -> None:
    """Whether it says one thing only, and names no device but these (None: nobody knows them).

    Raises:
        ContractError: one line.
    """
    topics.check_leaf(table.stream)
    topics.check_leaf(table.model)
    _check_source(table, devices)
    command = table.command
    if command is not None:
        if command.device is None and table.device is None:
            raise FileFormatError(f"[pipeline.command] of {table.stream}: name the device")
        if command.device is not None and devices is not None and command.device not in devices:
            raise FileFormatError(
                f"[pipeline.command] device {command.device!r} is not a [[device]]"
            )


def _check_source(table: PipelineTable, devices: Collection[str] | None) -> None:
    stream = table.stream
    named = [
        one for one in (table.device, table.topic, table.images, table.camera) if one is not None
    ]
    if len(named) != 1:
        raise FileFormatError(
            f"[[pipeline]] {stream}: either a device or [pipeline.topic], [pipeline.images] or"
            " [pipeline.camera] is its source"
        )
    has_pictures = table.images is not None or table.camera is not None
    if table.device is None:
        if table.channel is not None:
            raise FileFormatError(f"[[pipeline]] {stream}: only a device has a channel")
    elif devices is not None and table.device not in devices:
        raise FileFormatError(f"[[pipeline]] device {table.device!r} is not a [[device]]")
    elif table.channel is None:
        raise FileFormatError(f"[[pipeline]] {stream}: a device needs its channel")
    if table.prepare is not None and not has_pictures:
        raise FileFormatError(f"[pipeline.prepare] of {stream}: only pictures are prepared")
    if table.units is not None and (has_pictures or _is_searched(table.topic)):
        raise FileFormatError(
            f"[[pipeline]] {stream}: units are of a device or a raw message; others name theirs in"
            " [pipeline.topic]"
        )
    if table.topic is not None:
        _check_topic(table.topic)
    if table.camera is not None:
        _check_camera(table.camera)


def _is_searched(topic: TopicTable | None) -> bool:
    return topic is not None and topic.format != "raw"


def _check_topic(topic: TopicTable) -> None:
    for text in topic.values:
        parse_path(text)
    if (topic.format == "raw") == bool(topic.values):
        wanted = "has no values" if topic.values else 'needs values, such as ["$.temperature"]'
        raise FileFormatError(f"[pipeline.topic] {topic.filter}: {topic.format} {wanted}")
    if topic.units and (not topic.values or len(topic.units) not in {1, len(topic.values)}):
        raise FileFormatError(
            f"[pipeline.topic] {topic.filter}: {len(topic.units)} units for {len(topic.values)} values"
        )
    if topic.units and topic.encoding == "text":
        raise FileFormatError(f"[pipeline.topic] {topic.filter}: texts have no units")
    if topic.convert and (not topic.units or topic.encoding != "f32"):
        raise FileFormatError(
            f'[pipeline.topic] {topic.filter}: convert needs units and encoding = "f32"'
        )


def _check_camera(camera: CameraTable) -> None:
    if camera.url.startswith("/"):
        if not _V4L2_DEVICE.fullmatch(camera.url):
            raise FileFormatError(f"[pipeline.camera] {camera.url!r} is no /dev/video device")
        return
    try:
        parts = urlsplit(camera.url)
        has_password = parts.password is not None or parts.username is not None
        _ = parts.port
    except ValueError as exc:
        raise FileFormatError(f"[pipeline.camera] url: {exc}") from exc
    if parts.scheme not in CAMERA_SCHEMES or not parts.hostname:
        schemes = ", ".join(f"{scheme}://" for scheme in CAMERA_SCHEMES)
        raise FileFormatError(f"[pipeline.camera] url: /dev/video0, or one of {schemes} and a host")
    if has_password:
        # The configuration is shown to who asks for it.
        raise FileFormatError(
            "[pipeline.camera] url: put the name into username, the password into password_file"
        )
    if (camera.username is None) != (camera.password_file is None):
        raise FileFormatError("[pipeline.camera] username and password_file go together")


def read_file(data: bytes, *, source: str) -> list[dict[str, Any]]:
    """The tables of a file that holds [[pipeline]] tables alone, as they are written.

    Raises:
        ContractError: one line that names the file and the key.
    """
    file = toml.decode(data, PipelineFile, source=source)
    try:
        for table in file.pipeline:
            check(table)
    except FileFormatError as exc:
        raise FileFormatError(f"{source}: {exc}") from exc
    except ContractError as exc:
        raise FileFormatError(f"{source}: [[pipeline]]: {exc}") from exc
    plain: list[dict[str, Any]] = toml.plain(data)["pipeline"]
    return plain
