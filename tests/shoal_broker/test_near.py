"""What is lost in our own network is sent again soon; what the kernel does not know is left alone."""

import contextlib
import socket

import pytest

from shoal_broker import near
from shoal_broker.link import SessionConfig
from shoal_broker.server import Broker, BrokerConfig
from shoal_broker.tcp import open_socket


@contextlib.contextmanager
def connected():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
    ):
        yield one


def waits_us(sock) -> tuple[int, int]:
    try:
        return tuple(
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (near._TCP_RTO_MIN_US, near._TCP_DELACK_MAX_US)
        )
    except OSError:
        pytest.skip("this kernel has no such options")


def test_a_neighbour_gets_short_waits():
    with connected() as sock:
        before = waits_us(sock)
        near.hurry_if_near(sock)
        resend_us, confirm_us = waits_us(sock)
        assert resend_us == near.RESEND_US < before[0]
        assert confirm_us <= 2 * near.CONFIRM_US  # in steps of the kernel's clock


def test_who_is_far_away_keeps_the_kernels_own(monkeypatch):
    monkeypatch.setattr(near, "NEAR_US", -1)
    with connected() as sock:
        before = waits_us(sock)
        near.hurry_if_near(sock)
        assert waits_us(sock) == before


def test_a_socket_that_is_not_tcp_is_left_alone():
    for sock in socket.socketpair():
        with sock:
            near.hurry_if_near(sock)


def test_a_kernel_without_the_options_is_no_error(monkeypatch):
    monkeypatch.setattr(near, "_TCP_RTO_MIN_US", 9999)
    with connected() as sock:
        near.hurry_if_near(sock)


async def test_a_session_and_a_broker_in_one_network_have_short_waits():
    async with Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker:
        sock = await open_socket(SessionConfig(host="127.0.0.1", port=broker.port, client_id="n1"))
        with sock:
            assert waits_us(sock)[0] == near.RESEND_US
