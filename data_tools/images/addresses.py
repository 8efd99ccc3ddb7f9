"""The addresses at which an image is looked for, in order, and those that are never connected to."""

import ipaddress
import re
import socket
from collections.abc import Sequence

# {host}/images/I/{id}.{modifiers}.{suffix}: `_SX300_` sets the width, `_SL1500_` the longest side, `_SS40_` a square.
# Without modifiers the stored picture comes, often of 500 pixels on the longest side.
_AMAZON = re.compile(
    r"https?://(?:[\w-]+\.)*(?:(?:ssl-)?images-amazon|media-amazon|images\.amazon)\.com"
    r"(?P<folder>/images/[IP]/)(?P<id>[^/?#]+?)(?P<modifiers>\._[^/?#]*_)?(?P<suffix>\.\w+)"
)
_SIDE = re.compile(r"[SU][LRSXY](\d+)")
_STORED = 500  # pixels; modifiers that ask for less make a picture smaller than the stored one
_NOW = "https://m.media-amazon.com"  # serves the ids of all editions; older hosts may be dead

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # IPv4 in the last 32 bits, in the form of long ago


def split_urls(cell: str) -> list[str]:
    """The addresses in a cell, separated by white space."""
    return re.split(r"\s+(?=https?://)", cell.strip()) if cell.strip() else []


def candidates(urls: Sequence[str]) -> list[str]:
    """The addresses to try for one image, the best first: those given, each preceded by the one without the modifiers
    that make it small, and at last the same ids on Amazon's host of today. Other shops' addresses stay as they are."""
    tried, moved = [], []
    for url in urls:
        match = _AMAZON.fullmatch(url)
        if match is None:
            tried.append(url)
            continue
        modifiers = match["modifiers"] or ""
        stored = match["id"] + match["suffix"]
        plain = url[: match.start("id")] + stored
        sides = [int(side) for side in _SIDE.findall(modifiers)]
        is_small = bool(sides) and max(sides) < _STORED
        tried += [plain, url] if is_small else [url, plain]
        moved.append(_NOW + match["folder"] + stored)
    return list(dict.fromkeys([*tried, *moved]))


def is_public(address: str) -> bool:
    """True for an IP address of the public internet. Loopback, private networks, link-local (with the clouds' metadata,
    169.254.169.254), shared, multicast and reserved ones aren't, nor IPv6 addresses that stand for such IPv4 ones."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and not ip.is_reserved
    if ip.ipv4_mapped is not None:
        return is_public(str(ip.ipv4_mapped))
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 0xFFFF):
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    inner = [ip.sixtofour, *(ip.teredo or ())]
    if not all(is_public(str(one)) for one in inner if one is not None):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_site_local


def literal_address(host: str) -> str | None:
    """The IP address that a host is written as, also in the forms that C libraries take (2130706433, 0x7f.1, 0177.1);
    None for a name."""
    try:
        return str(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip("."))) if re.fullmatch(r"[\da-fA-FxX.]+", host) else None
    except OSError:
        return None
