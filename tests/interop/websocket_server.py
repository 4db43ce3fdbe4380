"""A WebSocket echo of the library websockets. Says "ready" once it listens."""

import asyncio
import sys

from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def main():
    async with serve(echo, None, int(sys.argv[1]), max_size=None) as server:
        print("ready", flush=True)
        await server.serve_forever()


asyncio.run(main())
