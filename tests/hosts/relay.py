"""``relay.py IF IF MS``: carries frames between two network interfaces, each MS later.

Stands in for the kernel's netem, which not every kernel has. Prints ``ready`` when it listens.
"""

import collections
import select
import socket
import struct
import sys
import time

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _VNET_HDR, _IGNORE_OUTGOING = 1, 15, 23
_ALL_PROTOCOLS, _PROMISCUOUS = 3, 1


def opened(interface: str) -> socket.socket:
    """Receives all that arrives at `interface`; checksums and segments are left as they are."""
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packet.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
    packet.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    packet.bind((interface, _ALL_PROTOCOLS))
    packet.setblocking(False)
    request = struct.pack("iHH8s", socket.if_nametoindex(interface), _PROMISCUOUS, 0, b"")
    packet.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)
    return packet


def relay(ends: tuple[socket.socket, socket.socket], delay_s: float) -> None:
    """For ever: what arrives at one leaves by the other, `delay_s` later, in order."""
    under_way: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    poll = select.epoll()
    other = {}
    for one, another in (ends, ends[::-1]):
        poll.register(one, select.EPOLLIN)
        other[one.fileno()] = (one, another)
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else -1
        for number, _ in poll.poll(wait_s):
            one, another = other[number]
            try:
                while frame := one.recv(1 << 17):
                    under_way.append((time.monotonic() + delay_s, another, frame))
            except OSError:
                continue
        while under_way and under_way[0][0] <= time.monotonic():
            _, leaves_by, frame = under_way.popleft()
            try:
                leaves_by.send(frame)
            except OSError:
                continue


if __name__ == "__main__":
    sockets = (opened(sys.argv[1]), opened(sys.argv[2]))
    print("ready", flush=True)
    relay(sockets, float(sys.argv[3]) / 1e3)
