"""Takes the place of the suite's tests/proxy_server.py: ringweir runs already, at the ports of tests/config.py.

What is left to start is TLS in front of the http listener: ringweir speaks to its clients in the clear.
"""

import asyncio
import threading
from dataclasses import dataclass
from ssl import SSLContext

# Filled in by the suite's run.
HTTP_PORT = 0


@dataclass
class ProxyConfig:
    proxy_type: str
    host: str
    port: int
    username: str | None = None
    password: str | None = None
    ssl_context: SSLContext | None = None


async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def decrypt(reader, writer):
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", HTTP_PORT)
    await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))


class ProxyServer:
    def __init__(self, config):
        self.encrypted = [proxy for proxy in config if proxy.ssl_context is not None]
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self):
        self.thread.start()
        for proxy in self.encrypted:
            server = asyncio.start_server(decrypt, proxy.host, proxy.port, ssl=proxy.ssl_context)
            asyncio.run_coroutine_threadsafe(server, self.loop).result(10)

    def shutdown(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(2)
