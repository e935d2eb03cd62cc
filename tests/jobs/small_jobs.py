"""Arguments of a job that is done in seconds, and ports for the cluster that it runs on."""

import contextlib
import ipaddress
import socket

import psutil

SMALL = (
    "--data.limit", "60", "--data.validation-size", "20", "--classifier.width", "0.125", "--training.epochs", "1",
    "--training.batch-size", "20", "--resources.images-per-part", "30", "--study.patches", "1x1", "5x5",
)  # fmt: skip


def free_port(ports):
    """A free port among some; Ray gives 10002 to 19999 to its workers."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("every port is taken")


def is_loopback(address):
    """Whether only this machine reaches an address; IPv4 ones may be written as IPv6."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def listening(process):
    """(name, address) of all doors at which a process and its descendants wait; one that ends meanwhile has none."""
    parent, found = psutil.Process(process), set()
    for one in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            doors = [door for door in one.net_connections(kind="inet") if door.status == psutil.CONN_LISTEN]
            found |= {(one.name(), door.laddr.ip) for door in doors}
    return found
