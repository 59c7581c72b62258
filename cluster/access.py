"""Who may talk to a Ray cluster: whoever has its token; without one, only whoever sits at the same machine.

Anyone who reaches a cluster's ports runs code on it. Token authentication is Ray's own (`RAY_AUTH_MODE=token`, the
token in `RAY_AUTH_TOKEN`, in the file `RAY_AUTH_TOKEN_PATH`, or in `~/.ray/auth_token`); this file decides where it
must be on.
"""

from __future__ import annotations

import ipaddress
import logging
import socket

from cluster.errors import InputError

__all__ = ["TOKEN_HELP", "is_loopback", "is_this_machine", "require_token", "take_token"]

TOKEN_HELP = (
    "Put the cluster's token into RAY_AUTH_TOKEN, or its file's path into RAY_AUTH_TOKEN_PATH. On Kubernetes, "
    "`kubectl get secret NAME -o jsonpath='{.data.auth_token}' | base64 -d` shows it; on a head of your own, "
    "`ray get-auth-token`."
)


def take_token() -> bool:
    """Whether this process shows a token to clusters: as `RAY_AUTH_MODE` says, and by itself where one is there."""
    from ray._private.authentication import authentication_token_setup

    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)
    return bool(authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


def require_token(host: str, *, is_on: bool, is_near: bool) -> None:
    """Pass if a cluster there has token authentication on, or is near: this machine's own.

    Near is a job API that answers at a loopback address. Of Ray itself no more can be asked than that it runs on this
    machine: it listens to all of its networks, whatever it is told (2.60).

    Raises:
        InputError: anyone on the network could run code there.
    """
    if not is_on and not is_near:
        raise InputError(
            f"the Ray cluster at {host} runs without authentication: anyone who reaches it can run code there. Start "
            "its nodes with RAY_AUTH_MODE=token and one token for all (once: `ray get-auth-token --generate`), and "
            f"set RAY_AUTH_MODE=token here. {TOKEN_HELP}"
        )


def is_this_machine(host: str) -> bool:
    """Whether a name or address leads to this machine alone."""
    try:
        found = {(entry[0], entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return False
    return all(_is_own(family, str(address)) for family, address in found)


def is_loopback(host: str) -> bool:
    """Whether what is sent to a name or address never leaves this machine."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def _is_own(family: socket.AddressFamily, address: str) -> bool:
    """Only an address of this machine can be bound."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
