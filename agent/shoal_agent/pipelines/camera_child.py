"""The process that reads a pipeline's camera: decodes all the time, keeps the newest picture, prepares it when asked.

python -m shoal_agent.pipelines.camera_child <agent's pid>
"""

import sys
import threading
import time
from typing import Any, Final

from shoal_agent.pipelines import child_main
from shoal_agent.pipelines import picture_pipe as pipe
from shoal_contract.images import Preparation

_SPARE: Final = 2
_PROTOCOLS: Final = {
    "rtsp": "rtsp,rtp,tcp,udp",
    "rtsps": "rtsp,rtsps,rtp,srtp,tls,tcp,udp",
    "http": "http,tcp",
    "https": "https,tls,tcp",
    "tcp": "tcp",
    "udp": "udp",
}
"""What a stream may lead FFmpeg to: a playlist must not make it read files."""


class Camera:
    """One camera: a thread that reads it, and the newest picture, which is all that is kept."""

    def __init__(self, opening: pipe.OpenCamera) -> None:
        # Slow to import, and only within the limits.
        import av  # noqa: PLC0415

        from shoal_agent.pipelines import preparing  # noqa: PLC0415

        self._av, self._prepared = av, preparing.prepared
        self._opening = opening
        self._changed = threading.Condition()
        self._newest: tuple[Any, int] | None = None
        self._count = 0
        self._given = 0
        self._ended: str | None = None
        threading.Thread(target=self._read, name="camera", daemon=True).start()

    def __call__(self, question: pipe.Question) -> pipe.Answer:
        """One answer."""
        match question:
            case pipe.Newest(wait_s, preparation):
                return self._give(wait_s, preparation)
        return pipe.Failed(f"a camera knows no {type(question).__name__}")

    def _give(self, wait_s: float, preparation: Preparation) -> pipe.Answer:
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended, timeout=wait_s)
            newest, self._newest = self._newest, None
            if newest is None:
                return pipe.Failed(self._ended) if self._ended is not None else pipe.Nothing()
            skipped, self._given = self._count - self._given - 1, self._count
        started = time.perf_counter_ns()
        frame, taken_ms = newest
        try:
            if frame.width * frame.height > self._opening.max_pixels:
                return pipe.Failed(
                    f"{frame.width} x {frame.height} pixels; at most {self._opening.max_pixels} are read"
                )
            data = self._prepared(_image(frame, preparation), preparation)
        except MemoryError:
            return pipe.Failed("a picture takes more memory than it may")
        except (ValueError, self._av.FFmpegError) as exc:
            return pipe.Unusable(_one_line(exc))
        return pipe.Picture(data, taken_ms, (time.perf_counter_ns() - started) // 1000, skipped)

    def _read(self) -> None:
        try:
            self._decode()
            reason = "the stream ended"
        except MemoryError:
            reason = "it takes more memory than it may"
        except Exception as exc:  # noqa: BLE001 - whatever FFmpeg and its bindings raise is the camera's end
            reason = _one_line(exc)
        with self._changed:
            self._ended = reason
            self._changed.notify_all()

    def _decode(self) -> None:
        opening = self._opening
        scheme = opening.url.partition("://")[0]
        options = dict(opening.options)
        if scheme in _PROTOCOLS:
            options["protocol_whitelist"] = _PROTOCOLS[scheme]
        chosen = opening.format or ("v4l2" if opening.url.startswith("/dev/") else None)
        with self._av.open(
            opening.url,
            format=chosen,
            options=options,
            timeout=(opening.open_timeout_s, opening.read_timeout_s),
        ) as container:
            if not container.streams.video:
                raise ValueError("there is no video in it")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                with self._changed:
                    self._newest = (frame, time.time_ns() // 1_000_000)
                    self._count += 1
                    self._changed.notify_all()


def _image(frame: Any, wanted: Preparation) -> Any:
    """The frame as a picture, not much larger than it is needed: FFmpeg makes it smaller for less."""
    _, _, width, height = wanted.crop
    ratio = max(
        _SPARE * wanted.width / (width * frame.width),
        _SPARE * wanted.height / (height * frame.height),
    )
    if ratio >= 1:
        return frame.to_image()
    return frame.to_image(
        width=max(1, round(frame.width * ratio)),
        height=max(1, round(frame.height * ratio)),
        interpolation="AREA",
    )


def _one_line(exc: BaseException) -> str:
    # FFmpeg's errors quote the address, with the password in it.
    text = getattr(exc, "strerror", None) or str(exc)
    return " ".join(str(text).split())[:300] or type(exc).__name__


if __name__ == "__main__":
    sys.exit(child_main.serve(sys.argv[1:], Camera))
