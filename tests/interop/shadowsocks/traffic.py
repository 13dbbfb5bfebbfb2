"""A server that is told how many bytes to take and to give, and SOCKS5 clients that ask it for them."""

import contextlib
import hashlib
import random
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

SECONDS = 30
CHUNK = 1 << 16
HEAD = struct.Struct("!QQ")
GREETING = b"I speak first\n"


def pattern(length):
    """Bytes that tell by themselves when some are lost, doubled or moved."""
    return random.Random(length).randbytes(length)


def receive(stream, length):
    """Exactly so many bytes, or an AssertionError."""
    received = bytearray()
    while len(received) < length:
        got = stream.recv(min(CHUNK, length - len(received)))
        assert got, f"an end after {len(received)} of {length} bytes"
        received += got
    return bytes(received)


class Greeter:
    """Says a line to whoever connects, and hears nothing."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        # A thread that accepts is woken by this, not by a close.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with contextlib.suppress(OSError), client:
            client.settimeout(SECONDS)
            client.sendall(GREETING)
            client.recv(1)


class Server(Greeter):
    """Takes `up` bytes while it gives `down` bytes, then tells the digest of what it took; each client has a thread."""

    def serve(self, client):
        client.settimeout(SECONDS)
        with contextlib.suppress(OSError, AssertionError), client:
            up, down = HEAD.unpack(receive(client, HEAD.size))
            giving = threading.Thread(target=client.sendall, args=(pattern(down),))
            giving.start()
            digest = hashlib.sha256(receive(client, up)).digest()
            giving.join()
            client.sendall(digest)


def connect(proxy, host, port):
    """A tunnel through the SOCKS5 proxy at this port of loopback to a name (RFC 1928)."""
    stream = socket.create_connection(("127.0.0.1", proxy), SECONDS)
    stream.sendall(b"\5\1\0")
    assert receive(stream, 2) == b"\5\0", "the proxy wants a user"
    stream.sendall(b"\5\1\0\3" + bytes([len(host)]) + host.encode() + port.to_bytes(2))
    reply = receive(stream, 4)
    assert reply[1] == 0, f"reply {reply[1]}"
    receive(stream, {1: 4, 4: 16}[reply[3]] + 2)
    return stream


def exchange(proxy, port, up, down, host="127.0.0.1"):
    """One session, both directions at once; every byte is judged by a digest, and the end is awaited."""
    with connect(proxy, host, port) as stream:
        sent, errors = pattern(up), []

        def give():
            try:
                stream.sendall(HEAD.pack(up, down) + sent)
            except OSError as error:
                errors.append(error)

        giving = threading.Thread(target=give)
        giving.start()
        received = receive(stream, down)
        giving.join()
        assert not errors, errors
        assert hashlib.sha256(received).digest() == hashlib.sha256(pattern(down)).digest(), "other bytes came down"
        assert receive(stream, 32) == hashlib.sha256(sent).digest(), "other bytes went up"
        assert stream.recv(1) == b"", "more than was given"


def hear(proxy, port):
    """A session in which the client says nothing before it has heard the server."""
    with connect(proxy, "127.0.0.1", port) as stream:
        assert receive(stream, len(GREETING)) == GREETING, "another greeting"


def exchange_many(proxy, port, sessions):
    """Small sessions, sixteen at once, to an address and to a name in turn."""
    draw = random.Random(sessions)
    with ThreadPoolExecutor(16) as clients:
        asked = [
            clients.submit(
                exchange,
                proxy,
                port,
                draw.randrange(3000),
                draw.randrange(3000),
                ("127.0.0.1", "localhost")[number % 2],
            )
            for number in range(sessions)
        ]
        for one in asked:
            one.result()
