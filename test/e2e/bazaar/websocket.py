# Echoes over WebSocket on PORT, or says a TEXT to a URL and wants it back: websocket.py PORT | URL TEXT
import asyncio, sys, websockets


async def echo(ws):
    async for message in ws:
        await ws.send(message)


async def main():
    if len(sys.argv) == 2:
        async with websockets.serve(echo, None, int(sys.argv[1])):
            await asyncio.Future()
    async with websockets.connect(sys.argv[1]) as ws:
        for text in [sys.argv[2], "x" * 300000]:
            await ws.send(text)
            answer = await ws.recv()
            assert answer == text, answer[:100]
            print(answer[:100])


asyncio.run(main())
