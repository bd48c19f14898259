"""Several hosts on one machine: network namespaces, each with a cable to a switch, and a speed at both of its ends."""

import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

#: Milliseconds that may wait for a limit: as a switch's port has it, more than a TCP window on these short cables.
_LATENCY = "100ms"

#: Seconds for which a busy machine may forget a cable that has more to carry. What it could have carried meanwhile
#: leaves at full speed after that: a smaller bucket would run over, and the cable be slower than it says.
_FORGOTTEN_S = 0.002

#: Bytes of the bucket at least: the biggest packet that a system hands to its network card.
_LEAST_BURST = 65_536


class NoHosts(Exception):  # noqa: N818 -- a reason to skip a test
    """Namespaces may not be made here, and why."""


@dataclass
class Hosts:
    """So many hosts, by number, whose names no other test has."""

    count: int
    #: Of each cable, each way, as `tc` spells it: `100mbit`.
    rate: str
    mark: str = field(default_factory=lambda: f"ls{secrets.token_hex(3)}")

    def name(self, number: int) -> str:
        return f"{self.mark}-{number}"

    @property
    def switch(self) -> str:
        return f"{self.mark}-switch"

    def address(self, number: int, *, is_ipv6: bool = False) -> str:
        """Return where a host is reached, as an address of ours has it."""
        return f"[fd77::{number + 1}]" if is_ipv6 else f"10.77.0.{number + 1}"

    def within(self, number: int) -> tuple[str, ...]:
        """Return what comes before a command for it to run on a host."""
        return ("ip", "netns", "exec", self.name(number))

    def pull(self, number: int) -> None:
        """Pull a host's cable out of the switch."""
        _ip("-n", self.switch, "link", "set", f"port{number}", "down")

    def put_back(self, number: int) -> None:
        """Put it back."""
        _ip("-n", self.switch, "link", "set", f"port{number}", "up")

    def drop(self, number: int, other: int) -> None:
        """Let a host drop without a word what it would send to another one, as a firewall does."""
        _ip("-n", self.name(number), "route", "replace", "blackhole", f"{self.address(other)}/32")

    def let_through(self, number: int, other: int) -> None:
        """Let a host send to another one again, if it did not."""
        with suppress(NoHosts):
            _ip("-n", self.name(number), "route", "del", "blackhole", f"{self.address(other)}/32")

    def build(self) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge0", "up")
        for number in range(self.count):
            self._build_host(number, self.name(number), f"port{number}")

    def _build_host(self, number: int, host: str, port: str) -> None:
        _ip("netns", "add", host)
        _ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.switch)
        _ip("-n", self.switch, "link", "set", port, "master", "bridge0")
        _ip("-n", host, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        # Without asking whether another host has it, which takes a second.
        ipv6 = self.address(number, is_ipv6=True).strip("[]")
        _ip("-n", host, "addr", "add", f"{ipv6}/64", "dev", "eth0", "nodad")
        for namespace, device in ((host, "eth0"), (self.switch, port)):
            limit = ("root", "tbf", "rate", self.rate, "burst", burst(self.rate), "latency", _LATENCY)
            _run("tc", "-n", namespace, "qdisc", "add", "dev", device, *limit)
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", host, "link", "set", "lo", "up")

    def remove(self) -> None:
        for name in (*map(self.name, range(self.count)), self.switch):
            with suppress(NoHosts):
                _ip("netns", "del", name)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHosts(f"{' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def hosts(count: int, rate: str) -> Iterator[Hosts]:
    """Make hosts, and take them away at the end; `NoHosts` where that may not be."""
    if not (shutil.which("ip") and shutil.which("tc")):
        raise NoHosts("`ip` and `tc` are not installed (Debian: iproute2)")
    made = Hosts(count, rate)
    try:
        made.build()
        yield made
    finally:
        made.remove()


@cache
def why_not() -> str:
    """Return why there can be no hosts here, empty where there can."""
    try:
        with hosts(1, "1gbit"):
            return ""
    except NoHosts as error:
        return str(error)


def speed(rate: str) -> float:
    """Return what `tc` calls `100mbit` in bytes a second."""
    return float(rate.removesuffix("mbit").removesuffix("gbit")) * (1e9 if rate.endswith("gbit") else 1e6) / 8


def burst(rate: str) -> str:
    """Return the bytes that may leave at once, as `tc` reads them."""
    return str(max(_LEAST_BURST, round(_FORGOTTEN_S * speed(rate))))


def seconds_pass(processes: Sequence["subprocess.Popen[str]"], seconds: float) -> None:
    """Let time pass in which a process is not to end."""
    with suppress(subprocess.TimeoutExpired):
        processes[0].wait(seconds)
        raise AssertionError(f"ended within {seconds:g} s, when nothing could reach it")
