"""Whether this node has neighbours at all: with an identity over TLS, without one only where the configuration says so."""

from pathlib import Path

import structlog

from shoal_agent.config import AgentConfig, has_certificate_by_itself
from shoal_agent.peers.credentials import PeerFiles
from shoal_broker.loopback import is_loopback
from shoal_broker.tls import TlsFiles

log = structlog.get_logger()

IDENTITY = "identity/current"
"""Below the state directory: what enrolment left there."""


def known_as(config: AgentConfig) -> PeerFiles | None:
    """Who we are to neighbours: the certificate for the broker, else the one of enrolment; None: nobody.

    Files of enrolment may come later: they are read for each connection.
    """
    broker = config.broker
    if broker.ca_file is not None and broker.cert_file is not None:
        files = TlsFiles(
            ca_file=config.peers.ca_file or broker.ca_file,
            cert_file=broker.cert_file,
            key_file=broker.key_file,
            named=config.node,
        )
        return PeerFiles(files, config.peers.crl_file)
    if not has_certificate_by_itself(config):
        return None
    enrolled = Path(config.state_dir) / IDENTITY
    files = TlsFiles(
        ca_file=config.peers.ca_file or str(enrolled / "ca.pem"),
        cert_file=str(enrolled / "cert.pem"),
        key_file=str(enrolled / "key.pem"),
        named=config.node,
    )
    return PeerFiles(files, config.peers.crl_file)


def permitted(config: AgentConfig, *, has_identity: bool) -> tuple[bool, bool]:
    """Whether the configured upstream node may be asked, and whether neighbours are answered and looked for."""
    peers = config.peers
    upstream = config.upstream
    if has_identity:
        return upstream is not None, peers.enabled
    if peers.plaintext:
        if peers.enabled or upstream is not None:
            log.warning("neighbours are spoken to in the clear, and believed", because="plaintext")
        return upstream is not None, peers.enabled
    asks = upstream is not None and is_loopback(upstream[0])
    answers = peers.enabled and is_loopback(peers.host)
    if (upstream is not None and not asks) or (peers.enabled and not answers):
        log.warning(
            "no neighbours: this node has no certificate",
            do="set [broker] cert_file, or say [peers] plaintext = true or enabled = false",
        )
    return asks, answers
