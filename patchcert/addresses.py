"""Finds passwords in addresses, so that nothing prints, records or writes them.

Where a password ends is a guess when it holds a ``/``, ``?``, ``#`` or ``@`` that should have been a percent code. The
guess errs on the safe side: everything up to the last ``@`` is hidden.
"""

import re
import urllib.parse

_URI = re.compile(r"([A-Za-z0-9+.-]{0,20})://(\S*)")
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_AUTHORITY = re.compile(r"[^/?#]*")
# host:port/... of file systems that live on a host, whose paths may hold an @; elsewhere it is a user and a password.
_WITH_HOSTS = ("hdfs", "viewfs", "webhdfs", "swebhdfs")
_HOST_AND_PORT = re.compile(r"[^:@]+:\d{1,5}(?=/)")
_IPV6_HOST = re.compile(r"\[[0-9A-Fa-f:.]+(%[\w.%-]*)?\](:\d*)?(?![^/?#])")
# Options such as ?secret_key=...; a name may be written with percent codes.
_OPTION = re.compile(r"(?<=[?&#;])([^=&\s?#;]+)=")
_VALUE = re.compile(r"[^&\s]*")
_SECRET_NAME = re.compile(r"passw|passphrase|pwd|secret|token|key|sig|credential|odbc_connect", re.IGNORECASE)
_HIDDEN = "***"


def masked(text: str) -> str:
    """Return a text as it may be printed and kept: passwords in the URIs in it are replaced by ``***``."""
    parts, end = [], 0
    while found := _URI.search(text, end):
        shown = _without_user(found[1], found[2])
        # Behind a host there may be further addresses, as in a list that is joined by commas.
        start, end = end, found.end() if shown or "@" not in found[2] else found.start(2)
        parts += [text[start : found.start(2)], shown or text[found.start(2) : end]]
    return _without_options("".join([*parts, text[end:]]))


def masked_address(address: str) -> str:
    """Return one address as it may be printed, which may hold spaces or lack its scheme; see :func:`masked`."""
    if found := _ADDRESS.fullmatch(address):
        return masked(address[: found.start(2)] + (_without_user(found[1], found[2]) or found[2]))
    user, at, rest = address.rpartition("@")
    return _without_options(f"{_HIDDEN}@{rest}" if at and ":" in urllib.parse.unquote(user) else address)


def unclear_letters(address: str) -> str:
    """Return the letters because of which programs may disagree where the password of an address ends; mostly none."""
    found = _ADDRESS.fullmatch(address)
    if found is None or masked_address(address) == address:
        return ""
    user = found[2].rpartition("@")[0]
    # What parses addresses of servers cuts at the last @, what parses those of databases at the first.
    wrong = "/?#[] \t\r\n" if found[1].lower() in ("http", "https") else "@/?#[] \t\r\n"
    return "".join(dict.fromkeys(letter for letter in user if letter in wrong))


def _without_user(scheme: str, rest: str) -> str:
    """What follows ``://`` in an address without its user and password; empty where there is no password."""
    if "@" not in rest or _IPV6_HOST.match(rest) or (scheme.lower() in _WITH_HOSTS and _HOST_AND_PORT.match(rest)):
        return ""
    authority = _AUTHORITY.match(rest)
    assert authority is not None
    user = authority[0].rpartition("@")[0] or authority[0]
    return f"{_HIDDEN}@{rest.rpartition('@')[2]}" if ":" in urllib.parse.unquote(user) else ""


def _without_options(text: str) -> str:
    """A text without the values of options that are named like secrets."""
    parts, end = [], 0
    for option in _OPTION.finditer(text):
        if option.start() >= end and _SECRET_NAME.search(urllib.parse.unquote(option[1])):
            value = _VALUE.match(text, option.end())
            assert value is not None
            parts += [text[end : option.end()], _HIDDEN if value[0] else ""]
            end = value.end()
    return "".join([*parts, text[end:]])
