"""Which addresses this user's Ray, MLflow and patchcert processes listen on, as Linux tells it."""

import contextlib
import dataclasses
import ipaddress
import os
import re
from pathlib import Path

_LISTENS = "0A"
_OURS = re.compile(r"(^|[/\s])(raylet|gcs_server|ray::|ray/|mlflow|patchcert)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listener:
    """A process that takes connections.

    Attributes:
        process: its number.
        program: its name.
        address: that it listens on.
        port: that it listens on.
    """

    process: int
    program: str
    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.program} ({self.process}) on {host}:{self.port}"


def listeners(proc: Path = Path("/proc")) -> list[Listener] | None:
    """List what listens, ordered by process and port.

    Args:
        proc: where the kernel shows its processes.

    Returns:
        The listeners, or None where the system does not show them in this way.
    """
    if not (proc / "net" / "tcp").is_file():
        return None
    places = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            places |= _listening(proc / "net" / table)
    found = []
    for folder in proc.iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and folder.stat().st_uid == os.getuid():
                found += _listeners_of(folder, places)
    return sorted(found, key=lambda listener: (listener.process, listener.port, listener.address))


def _listening(table: Path) -> dict[str, tuple[str, int]]:
    """Name of a socket -> (address, port), from a table of the kernel."""
    places = {}
    for line in table.read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENS:
            address, _, port = fields[1].partition(":")
            places[f"socket:[{fields[9]}]"] = (_address(address), int(port, 16))
    return places


def _address(text: str) -> str:
    """An address as the kernel writes it: words of four bytes, the last byte of each first."""
    data = bytes.fromhex(text)
    return str(ipaddress.ip_address(b"".join(data[start : start + 4][::-1] for start in range(0, len(data), 4))))


def _listeners_of(folder: Path, places: dict[str, tuple[str, int]]) -> list[Listener]:
    words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ").strip()
    if not _OURS.search(words):
        return []
    found = {}
    for descriptor in (folder / "fd").iterdir():
        with contextlib.suppress(OSError):
            if place := places.get(os.readlink(descriptor)):
                found[place] = Listener(
                    process=int(folder.name), program=_program(words), address=place[0], port=place[1]
                )
    return list(found.values())


def _program(words: str) -> str:
    match = _OURS.search(words)
    name = os.path.basename(words.split()[0])
    return name if match is None or name.startswith(match[2].rstrip(":/")) else f"{match[2].rstrip(':/')} in {name}"
