"""A gRPC client of the library grpcio: what is allowed, what is denied, and that one connection outlives both."""

import sys
import threading

import grpc

WAIT = 30
channel = grpc.insecure_channel(
    sys.argv[1],
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
)


def peer(call):
    return dict(call.trailing_metadata())["peer"]


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


unary = channel.unary_unary("/interop.Echo/Unary")
reply, call = unary.with_call(b"hello", timeout=WAIT, metadata=(("note", "n"), ("data-bin", b"\x00\xff")))
assert reply == b"hello", reply
first = peer(call)

# Denied, as a unary call and as a stream: in gRPC's words, at once, and never as a transport error.
code, details = code_of(lambda: channel.unary_unary("/interop.Echo/Secret")(b"x", timeout=WAIT))
assert code is grpc.StatusCode.PERMISSION_DENIED, (code, details)
code, details = code_of(lambda: list(channel.stream_stream("/interop.Echo/SecretChat")(iter([b"x"] * 3), timeout=WAIT)))
assert code is grpc.StatusCode.PERMISSION_DENIED, (code, details)
big = b"z" * 3_000_000
code, details = code_of(lambda: channel.unary_unary("/interop.Echo/Secret")(big, timeout=WAIT))
assert code is grpc.StatusCode.PERMISSION_DENIED, (code, details)

# What the server itself says comes through as it is.
code, details = code_of(lambda: channel.unary_unary("/interop.Echo/Fail")(b"x", timeout=WAIT))
assert code is grpc.StatusCode.FAILED_PRECONDITION and details == "as asked: \u00e9 100%", (code, details)
code, details = code_of(lambda: channel.unary_unary("/interop.Echo/Unheard")(b"x", timeout=WAIT))
assert code is grpc.StatusCode.UNIMPLEMENTED, (code, details)

reply, call = unary.with_call(big, timeout=WAIT, compression=grpc.Compression.Gzip)
assert reply == big
parts = list(channel.unary_stream("/interop.Echo/Download")(b"200", timeout=WAIT))
assert [len(part) for part in parts] == [20_000] * 200
total = channel.stream_unary("/interop.Echo/Upload")(iter([b"u" * 50_000] * 40), timeout=WAIT)
assert total == b"2000000", total

# Ping-pong: the next message goes out when the one before is back.
turn = threading.Semaphore(1)


def balls():
    for number in range(50):
        turn.acquire()
        yield str(number).encode()


chat = channel.stream_stream("/interop.Echo/Chat")(balls(), timeout=WAIT)
for number, ball in enumerate(chat):
    assert ball == str(number).encode(), (number, ball)
    turn.release()
assert number == 49 and dict(chat.initial_metadata())["hello"] == "there"

# Cancelled and too late: the client's doing, and the connection goes on.
never = threading.Event()


def silence():
    never.wait(WAIT)
    yield b""


held = channel.stream_stream("/interop.Echo/Chat")(silence(), timeout=WAIT)
held.cancel()
assert held.code() is grpc.StatusCode.CANCELLED
code, details = code_of(lambda: list(channel.stream_stream("/interop.Echo/Chat")(silence(), timeout=0.5)))
assert code is grpc.StatusCode.DEADLINE_EXCEEDED, (code, details)
never.set()

calls = [unary.future(str(number).encode(), timeout=WAIT) for number in range(300)]
assert [call.result() for call in calls] == [str(number).encode() for number in range(300)]

reply, call = unary.with_call(b"last", timeout=WAIT)
assert reply == b"last" and peer(call) == first, ("another connection", first, peer(call))
channel.close()
print("good")
