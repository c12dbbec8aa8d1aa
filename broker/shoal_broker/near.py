"""TCP to a neighbour in the same network: what is lost is sent again after 20 ms, not after 200.

Linux waits 200 ms at least before it takes a lone segment for lost, which is made for the far ends of the Internet: an answer
that crosses a radio network with losses then takes as long as many round trips. Linux 6.15 and later have options of a socket
for it; where they are missing nothing changes.
"""

import contextlib
import socket
import struct
from typing import Final

NEAR_US: Final = 10_000
"""Who answered the handshake later than that is not near: its times may vary by more than the wait."""
RESEND_US: Final = 20_000
CONFIRM_US: Final = 10_000
"""What has come is confirmed within this, so that the other end, which waits as we do, sends nothing twice."""

# include/uapi/linux/tcp.h; Python has no names for them.
_TCP_RTO_MIN_US: Final = 45
_TCP_DELACK_MAX_US: Final = 46
_RTT_US: Final = struct.Struct("@68xI")
"""tcpi_rtt in struct tcp_info."""


def hurry_if_near(tcp: socket.socket) -> None:
    """Set both waits of a connected socket whose other end is near."""
    with contextlib.suppress(OSError):  # an older kernel, or not TCP
        (rtt_us,) = _RTT_US.unpack(
            tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_US.size)
        )
        if rtt_us <= NEAR_US:
            tcp.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MIN_US, RESEND_US)
            tcp.setsockopt(socket.IPPROTO_TCP, _TCP_DELACK_MAX_US, CONFIRM_US)
