"""A WebSocket client of the library websockets: an allowed path, a denied one, and the life of the tunnel."""

import asyncio
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


async def main():
    base = f"ws://{sys.argv[1]}"
    for path in ["/secret", "/echo/../secret"]:
        try:
            async with connect(base + path):
                raise AssertionError(f"{path} is open")
        except InvalidStatus as refused:
            assert refused.response.status_code == 403, refused
    # With permessage-deflate and without.
    for compression in ["deflate", None]:
        async with connect(base + "/echo", compression=compression, max_size=None) as socket:
            large = os.urandom(3_000_000)
            for message in ["hello", b"\x00\xff" * 10, "", "\u00e9" * 100_000, large]:
                await socket.send(message)
                assert await socket.recv() == message, len(message)
            # A message in parts, as they come.
            await socket.send(part for part in ["one", "two", "three"])
            assert await socket.recv() == "onetwothree"
            latency = await (await socket.ping())
            assert latency >= 0
            for number in range(200):
                await socket.send(str(number))
            for number in range(200):
                assert await socket.recv() == str(number)
            await socket.close(4001, "bye")
            assert socket.close_code == 4001, socket.close_code


asyncio.run(asyncio.wait_for(main(), 60))
print("good")
