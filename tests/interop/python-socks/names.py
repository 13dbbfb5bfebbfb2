"""A name server for a few names (RFC 1035, as much as one question needs)."""

import ipaddress
import socket
import threading
import time

# The suite's own proxies wait as long before they connect, so that a client's timeout of 1 ms is one.
DELAY_SECONDS = 0.01
TYPES = {1: 4, 28: 6}


class NameServer:
    def __init__(self, addresses):
        self.addresses = {name: ipaddress.ip_address(address) for name, address in addresses.items()}
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.socket.close()

    def serve(self):
        while True:
            try:
                question, client = self.socket.recvfrom(512)
                time.sleep(DELAY_SECONDS)
                self.socket.sendto(self.answer(question), client)
            except OSError:
                return

    def answer(self, question):
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode().lower())
            at += 1 + length
        kind = int.from_bytes(question[at + 1 : at + 3])
        address = self.addresses.get(".".join(labels))
        is_found = address is not None and TYPES.get(kind) == address.version
        record = (
            b"\xc0\x0c" + question[at + 1 : at + 5] + bytes(4) + len(address.packed).to_bytes(2) + address.packed
            if is_found
            else b""
        )
        code = 3 if address is None else 0
        counts = b"\0\1" + (b"\0\1" if is_found else b"\0\0") + bytes(4)
        return question[:2] + bytes([0x81, 0x80 | code]) + counts + question[12 : at + 5] + record
