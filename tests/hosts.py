"""Several hosts on this machine: a network namespace each, with an address of its own, on one bridge.

Their files are this machine's. This machine itself is on the bridge too, by `Network.address`. Needs root and the
`ip` command; Linux only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field

__all__ = ["Host", "Network", "why_no_hosts"]

_INTERFACE = "eth0"


@dataclass(frozen=True)
class Host:
    """One host; a command with `inside` before it runs there."""

    name: str
    address: str
    cable: str
    """The end of its cable that is this machine's."""

    @property
    def inside(self) -> tuple[str, ...]:
        """What goes before a command."""
        return ("ip", "netns", "exec", self.name)

    @property
    def environment(self) -> dict[str, str]:
        """What processes there need to find each other: gloo takes the address of the host's name otherwise."""
        return {"GLOO_SOCKET_IFNAME": _INTERFACE, "NCCL_SOCKET_IFNAME": _INTERFACE}

    def cut(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self.cable, "up")


@dataclass
class Network:
    """A bridge and the hosts on it; all is gone after `remove`."""

    hosts: list[Host] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._number = os.getpid()
        self._bridge = f"xb{self._number}"
        # One of 62,500 private networks, by this process.
        self._prefix = f"10.{self._number // 250 % 250}.{self._number % 250}"
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    @property
    def address(self) -> str:
        """This machine's address as the hosts see it."""
        return f"{self._prefix}.254"

    def add(self) -> Host:
        """One more host, cabled to the bridge."""
        number = len(self.hosts) + 1
        host = Host(f"xdist-{self._number}-{number}", f"{self._prefix}.{number}", f"xv{self._number}-{number}")
        _ip("netns", "add", host.name)
        self.hosts.append(host)
        _ip("link", "add", host.cable, "type", "veth", "peer", "name", _INTERFACE, "netns", host.name)
        _ip("link", "set", host.cable, "master", self._bridge)
        _ip("link", "set", host.cable, "up")
        _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", _INTERFACE)
        _ip("-n", host.name, "link", "set", _INTERFACE, "up")
        _ip("-n", host.name, "link", "set", "lo", "up")
        return host

    def remove(self) -> None:
        """Namespaces, cables and bridge are gone; nothing may run in them any more."""
        for host in self.hosts:
            subprocess.run(["ip", "link", "del", host.cable], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", host.name], check=False)
        subprocess.run(["ip", "link", "del", self._bridge], check=False)


def why_no_hosts() -> str:
    """Why there can be no hosts of this kind here; empty if there can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "no `ip` command: apt-get install iproute2"
    name = f"xdist-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no network namespace can be made here: {done.stderr.strip()}"
    inside = subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"no command runs in a network namespace here: {inside.stderr.strip()}" if inside.returncode else ""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
