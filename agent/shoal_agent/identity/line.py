"""The line to the enrolment door: HTTPS with TLS 1.3, one blocking request a connection. Knows no X.509 of its own."""

import http.client
import ssl
from typing import Final

from shoal_agent.errors import DoorNotTrustedError, DoorUnreachableError
from shoal_agent.identity.address import DoorAddress
from shoal_contract.enrolment import CA_PATH, ENROL_PATH, MAX_ANSWER_BYTES

TIMEOUT_S: Final = 10.0
# X509_V_FLAG_NO_CHECK_TIME, of which Python has no name.
_NO_CHECK_TIME: Final = 0x200000
_TOO_OLD: Final = frozenset({"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"})


def fetch_authority(door: DoorAddress) -> bytes:
    """What the door says its authority is (PEM). Nothing vouches for it but the pin that it is compared with."""
    context = _context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    status, body = _talk(door, context, "GET", CA_PATH, None)
    if status != http.client.OK:
        raise DoorUnreachableError(f"{door.host}:{door.port} is no enrolment door ({status})")
    return body


def ask(
    door: DoorAddress, authority: bytes, request: bytes, *, whatever_the_time: bool
) -> tuple[int, bytes]:
    """Status and body of the answer, from a door with a certificate of this authority and that name.

    `whatever_the_time`: for a board that knows its clock to be wrong.
    """
    context = _context()
    context.load_verify_locations(cadata=authority.decode("ascii"))
    if whatever_the_time:
        context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return _talk(door, context, "POST", ENROL_PATH, request)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _talk(
    door: DoorAddress, context: ssl.SSLContext, method: str, path: str, body: bytes | None
) -> tuple[int, bytes]:
    where = f"{door.host}:{door.port}"
    connection = http.client.HTTPSConnection(
        door.host, door.port, context=context, timeout=TIMEOUT_S
    )
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        found = answer.read(MAX_ANSWER_BYTES + 1)
    except ssl.SSLCertVerificationError as exc:
        raise DoorNotTrustedError(
            f"the certificate of {where} is not accepted: {exc.verify_message}"
        ) from exc
    except ssl.SSLError as exc:
        if exc.reason in _TOO_OLD:
            raise DoorNotTrustedError(f"{where} does not speak TLS 1.3") from exc
        raise DoorUnreachableError(f"{where} ended TLS: {exc.reason or exc}") from exc
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        raise DoorUnreachableError(
            f"{where} is not reached: {str(exc) or type(exc).__name__}"
        ) from exc
    finally:
        connection.close()
    if len(found) > MAX_ANSWER_BYTES:
        raise DoorUnreachableError(f"{where} says too much to be an enrolment door")
    return answer.status, found
