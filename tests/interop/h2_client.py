"""An HTTP/2 client of the library h2: allowed and denied streams of one connection, bodies, trailers, PING, GOAWAY."""

import json
import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings

host, port = sys.argv[1].rsplit(":", 1)
sock = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
connection.initiate_connection()
sock.sendall(connection.data_to_send())

streams = {}
pongs = []


def turn():
    data = sock.recv(65_536)
    assert data, "the connection ended"
    for event in connection.receive_data(data):
        stream = streams.setdefault(getattr(event, "stream_id", 0), {"body": b"", "trailers": {}, "ended": False})
        if isinstance(event, h2.events.ResponseReceived):
            stream["status"] = int(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            stream["body"] += event.data
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            stream["trailers"] = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            stream["ended"] = True
        elif isinstance(event, h2.events.StreamReset):
            stream["reset"] = event.error_code
            stream["ended"] = True
        elif isinstance(event, h2.events.PingAckReceived):
            pongs.append(event.ping_data)
        elif isinstance(event, h2.events.ConnectionTerminated):
            raise AssertionError(event)
    sock.sendall(connection.data_to_send())


def ask(method, path, body=None, trailers=None, wait=True):
    number = connection.get_next_available_stream_id()
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "cart")]
    connection.send_headers(number, fields, end_stream=body is None)
    streams[number] = {"body": b"", "trailers": {}, "ended": False}
    left = body or b""
    while left and not streams[number]["ended"]:
        window = min(connection.local_flow_control_window(number), connection.max_outbound_frame_size, len(left))
        if window == 0:
            sock.sendall(connection.data_to_send())
            turn()
            continue
        connection.send_data(number, left[:window])
        left = left[window:]
    if body is not None and not streams[number]["ended"]:
        if trailers:
            connection.send_headers(number, trailers, end_stream=True)
        else:
            connection.end_stream(number)
    sock.sendall(connection.data_to_send())
    while wait and not streams[number]["ended"]:
        turn()
    return streams[number] if wait else number


answer = ask("GET", "/items")
assert answer["status"] == 200, answer
peer = json.loads(answer["body"])["peer"]
assert answer["trailers"].get("x-sum") == "0", answer
for method, path, body in [("GET", "/admin", None), ("DELETE", "/items", None), ("PUT", "/admin", b"x" * 100_000)]:
    denied = ask(method, path, body)
    assert denied["status"] == 403, (method, path, denied)
# Many at once, every other one denied.
numbers = [ask("GET", "/items/many" if turn_ % 2 else "/admin/many", wait=False) for turn_ in range(90)]
while not all(streams[number]["ended"] for number in numbers):
    turn()
assert [streams[number]["status"] for number in numbers] == [403, 200] * 45
upload = ask("PUT", "/items/upload", b"u" * 1_000_000, [("x-checked", "yes")])
assert upload["status"] == 200 and json.loads(upload["body"])["bytes"] == 1_000_000, upload
file = ask("GET", "/items/file")
assert file["status"] == 200 and len(file["body"]) == 1_048_576, len(file["body"])
head = ask("HEAD", "/items/file")
assert head["status"] == 200 and head["body"] == b""
connection.ping(b"12345678")
connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100_000})
sock.sendall(connection.data_to_send())
while not pongs:
    turn()
assert pongs == [b"12345678"]
answer = ask("GET", "/items/last")
assert answer["status"] == 200
if "--one-server" in sys.argv:
    assert json.loads(answer["body"])["peer"] == peer, "another connection to the server"
connection.close_connection()
sock.sendall(connection.data_to_send())
sock.close()
print("good")
