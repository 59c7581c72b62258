"""Who is let in."""

from __future__ import annotations

import socket

import pytest

from cluster.access import is_loopback, is_this_machine, require_token
from cluster.errors import InputError

_ELSEWHERE = "192.0.2.77"  # nobody's, by RFC 5737


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_this_machine_needs_no_token(host: str) -> None:
    """What never leaves the machine is let in without one."""
    assert (True, True) == (is_loopback(host), is_this_machine(host))
    require_token(host, is_on=False, is_near=is_loopback(host))


def test_another_machine_needs_a_token() -> None:
    """Without authentication it is refused, with what to do; with it, not."""
    assert (False, False) == (is_loopback(_ELSEWHERE), is_this_machine(_ELSEWHERE))
    with pytest.raises(InputError, match=f"{_ELSEWHERE} runs without authentication.*RAY_AUTH_MODE=token"):
        require_token(_ELSEWHERE, is_on=False, is_near=False)
    require_token(_ELSEWHERE, is_on=True, is_near=False)


def test_a_name_that_leads_nowhere_is_not_this_machine() -> None:
    """An unknown name is trusted with nothing."""
    assert (False, False) == (is_loopback("no-such-host.invalid"), is_this_machine("no-such-host.invalid"))


def test_an_address_of_this_machine_is_its_own() -> None:
    """Ray calls a machine by the address of its network, which is no loopback but is here."""
    own = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    assert [address for address in own if not is_this_machine(str(address))] == []
