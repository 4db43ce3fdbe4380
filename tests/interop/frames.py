"""The conformance table of HTTP/2 frames: malformed ones, made with the library hyperframe, and what must come of each.

Each row has its section of RFC 9113 and one of
  connection(codes)  a GOAWAY with one of these codes, and the end of the connection
  stream(codes)      a RST_STREAM with one of these codes, while the connection goes on; RFC 9113 s5.4.2 lets an end treat
                     a stream error as one of the connection
  refused            a malformed request: status 400, or as stream(PROTOCOL_ERROR)   (s8.1.1)
  ignored            the connection goes on: a PING and a request are answered
Prints one row a line; exit code 1 if one came out otherwise.
"""

import socket
import struct
import sys

from hpack import Encoder, Decoder
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

NO_ERROR, PROTOCOL, INTERNAL, FLOW, TIMEOUT, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION = range(10)
CALM = 11
NAMES = "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR \
REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM".split()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WAIT = 15
QUIET = 0.2


def connection(*codes):
    return ("connection", codes)


def stream(*codes):
    return ("stream", codes)


refused, ignored = ("refused", (PROTOCOL,)), ("ignored", ())


def raw(kind, flags, number, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">HBBBI", length >> 8, length & 255, kind, flags, number) + payload


def block(*fields):
    """Literals in this order and spelling, which the library hpack would not refuse either."""
    return Encoder().encode(list(fields), huffman=False)


GET = [(":method", "GET"), (":scheme", "http"), (":path", "/items"), (":authority", "cart")]
POST = [(":method", "POST"), (":scheme", "http"), (":path", "/items"), (":authority", "cart")]


def headers(number, fields=None, flags=("END_HEADERS", "END_STREAM"), data=None, **more):
    data = block(*(GET if fields is None else fields)) if data is None else data
    return HeadersFrame(number, data, flags=list(flags), **more).serialize()


def post(number, *more):
    return headers(number, POST + list(more), ["END_HEADERS"])


def data(number, payload=b"", *flags, **more):
    return DataFrame(number, payload, flags=list(flags), **more).serialize()


def settings(values):
    return SettingsFrame(0, settings=values).serialize()


def get(*more):
    """A request with more fields."""
    return headers(1, GET + list(more))


def without(name, *more):
    return headers(1, [field for field in GET if field[0] != name] + list(more))


ROWS = [
    # The preface and frames of any kind.
    ("3.4", "a preface of another protocol's", ("hello", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + settings({})), ("either", ("closed", "connection"))),
    ("3.4", "the first frame is no SETTINGS", ("hello", PREFACE + PingFrame(0, b"12345678").serialize()), connection(PROTOCOL)),
    ("3.4", "the first frame is SETTINGS with ACK", ("hello", PREFACE + SettingsFrame(0, flags=["ACK"]).serialize()), connection(PROTOCOL)),
    ("4.1", "a frame of a kind that nobody knows", raw(0xBE, 0xFF, 0, b"what"), ignored),
    ("4.1", "the same on an idle stream", raw(0xBE, 0, 5, b"what"), ignored),
    ("4.1", "ALTSVC (RFC 7838 s4), which a server has no use for", AltSvcFrame(0, b"cart", b'h2=":1"').serialize(), ignored),
    ("4.1", "flags that have no meaning", raw(6, 0xFE, 0, b"12345678"), ignored),
    ("4.1", "the reserved bit of a stream's number", raw(1, 5, 0x8000_0001, block(*GET)), ignored),
    ("4.2", "DATA that is longer than SETTINGS_MAX_FRAME_SIZE", post(1) + raw(0, 0, 1, b"x" * 16_385), connection(SIZE)),
    ("4.2", "HEADERS that are longer", raw(1, 5, 1, block(*GET, ("x-long", "y" * 17_000))), connection(SIZE)),
    ("4.2", "PING of seven bytes", raw(6, 0, 0, b"1234567"), connection(SIZE)),
    ("4.2", "PING of nine bytes", raw(6, 0, 0, b"123456789"), connection(SIZE)),
    ("4.3", "a header block that cannot be decoded: an index of no entry", headers(1, data=b"\xff\xff\xff\xff\x0f"), connection(COMPRESSION)),
    ("4.3", "a header block that ends inside a literal", headers(1, data=block(*GET) + b"\x40\x0ax-cut"), connection(COMPRESSION)),
    ("4.3", "Huffman coding of EOS (RFC 7541 s5.2)", headers(1, data=block(*GET) + b"\x00\x01a\x84\xff\xff\xff\xff"), connection(COMPRESSION)),
    ("4.3", "a table size above SETTINGS_HEADER_TABLE_SIZE (RFC 7541 s6.3)", headers(1, data=b"\x3f\xff\xff\x03" + block(*GET)), connection(COMPRESSION)),
    ("4.3", "a table size after the first field (RFC 7541 s4.2)", headers(1, data=block(*GET) + b"\x20"), connection(COMPRESSION)),
    ("4.3", "PING inside a header block", headers(1, flags=["END_STREAM"]) + PingFrame(0, b"12345678").serialize(), connection(PROTOCOL)),
    ("4.3", "DATA inside a header block", headers(1, flags=[]) + data(1, b"x"), connection(PROTOCOL)),
    ("4.3", "an unknown frame inside a header block", headers(1, flags=["END_STREAM"]) + raw(0xBE, 0, 0, b"x"), connection(PROTOCOL)),
    # Streams.
    ("5.1", "DATA on an idle stream", data(1, b"x"), connection(PROTOCOL)),
    ("5.1", "RST_STREAM on an idle stream", RstStreamFrame(1, CANCEL).serialize(), connection(PROTOCOL)),
    ("5.1", "WINDOW_UPDATE on an idle stream", WindowUpdateFrame(1, 1).serialize(), connection(PROTOCOL)),
    ("5.1", "CONTINUATION on an idle stream", ContinuationFrame(1, block(*GET), flags=["END_HEADERS"]).serialize(), connection(PROTOCOL)),
    ("5.1", "DATA after END_STREAM", headers(1) + data(1, b"x"), stream(CLOSED)),
    ("5.1", "HEADERS after END_STREAM", headers(1) + headers(1), stream(CLOSED)),
    ("5.1", "DATA after RST_STREAM", post(1) + RstStreamFrame(1, CANCEL).serialize() + data(1, b"x"), stream(CLOSED)),
    ("5.1", "HEADERS after RST_STREAM", post(1) + RstStreamFrame(1, CANCEL).serialize() + headers(1), stream(CLOSED)),
    ("5.1", "WINDOW_UPDATE after END_STREAM", headers(1) + WindowUpdateFrame(1, 1).serialize(), ignored),
    ("5.1.1", "a stream with an even number", headers(2), connection(PROTOCOL)),
    ("5.1.1", "a stream with a lower number than one before", headers(5) + headers(3), connection(PROTOCOL, CLOSED)),
    ("5.1.1", "HEADERS on stream 0", raw(1, 5, 0, block(*GET)), connection(PROTOCOL)),
    ("5.3.2", "a stream that depends on itself, which RFC 7540 forbade", headers(1, flags=["END_HEADERS", "END_STREAM", "PRIORITY"], depends_on=1, stream_weight=1), ("either", ("ignored", "stream", "connection"))),
    # Frame by frame.
    ("6.1", "DATA on stream 0", raw(0, 0, 0, b"x"), connection(PROTOCOL)),
    ("6.1", "padding as long as the frame", post(1) + raw(0, 8, 1, b"\x05abcd"), connection(PROTOCOL)),
    ("6.1", "padding without a length", post(1) + raw(0, 8, 1), connection(SIZE, PROTOCOL)),
    ("6.2", "padding of HEADERS as long as the frame", raw(1, 0xD, 1, b"\xff" + block(*GET)), connection(PROTOCOL)),
    ("6.2", "priority of HEADERS that is cut short", raw(1, 0x25, 1, b"\x00\x00"), connection(SIZE, PROTOCOL)),
    ("6.3", "PRIORITY on stream 0", raw(2, 0, 0, b"\0\0\0\0\x10"), connection(PROTOCOL)),
    ("6.3", "PRIORITY of four bytes", headers(1) + raw(2, 0, 1, b"\0\0\0\0"), ("either", ("stream", "connection"))),
    ("6.3", "PRIORITY on an idle stream", PriorityFrame(7, depends_on=1, stream_weight=9).serialize(), ignored),
    ("6.4", "RST_STREAM on stream 0", raw(3, 0, 0, b"\0\0\0\x08"), connection(PROTOCOL)),
    ("6.4", "RST_STREAM of three bytes", post(1) + raw(3, 0, 1, b"\0\0\0"), connection(SIZE)),
    ("6.5", "SETTINGS on a stream", raw(4, 0, 1), connection(PROTOCOL)),
    ("6.5", "SETTINGS with ACK and a payload", raw(4, 1, 0, b"\0\3\0\0\0\1"), connection(SIZE)),
    ("6.5", "SETTINGS of five bytes", raw(4, 0, 0, b"\0\3\0\0\0"), connection(SIZE)),
    ("6.5.2", "SETTINGS_ENABLE_PUSH of 2", settings({2: 2}), connection(PROTOCOL)),
    ("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1", settings({4: 2**31}), connection(FLOW)),
    ("6.5.2", "SETTINGS_MAX_FRAME_SIZE below 16384", settings({5: 16_383}), connection(PROTOCOL)),
    ("6.5.2", "SETTINGS_MAX_FRAME_SIZE above 2^24-1", settings({5: 2**24}), connection(PROTOCOL)),
    ("6.5.2", "a setting that nobody knows", settings({0xBEEF: 1}), ignored),
    ("6.5.2", "the same setting twice: the last one counts", raw(4, 0, 0, b"\0\4\0\0\0\1" + b"\0\4\0\1\0\0"), ignored),
    ("6.5.2", "SETTINGS_ENABLE_CONNECT_PROTOCOL of 2 (RFC 8441 s3)", settings({8: 2}), ("either", ("ignored", "connection"))),
    ("6.6", "PUSH_PROMISE from a client", raw(5, 4, 1, b"\0\0\0\2" + block(*GET)), connection(PROTOCOL)),
    ("6.6", "the same on an open stream", post(1) + PushPromiseFrame(1, promised_stream_id=2, data=block(*GET), flags=["END_HEADERS"]).serialize(), connection(PROTOCOL)),
    ("6.7", "PING on a stream", raw(6, 0, 1, b"12345678"), connection(PROTOCOL)),
    ("6.7", "PING with ACK that nobody asked for", raw(6, 1, 0, b"12345678"), ignored),
    ("6.8", "GOAWAY on a stream", raw(7, 0, 1, b"\0" * 8), connection(PROTOCOL)),
    ("6.8", "GOAWAY of seven bytes", raw(7, 0, 0, b"\0" * 7), connection(SIZE, PROTOCOL)),
    ("6.9", "WINDOW_UPDATE of 0 on the connection", raw(8, 0, 0, b"\0\0\0\0"), connection(PROTOCOL)),
    ("6.9", "WINDOW_UPDATE of 0 on a stream", post(1) + raw(8, 0, 1, b"\0\0\0\0"), stream(PROTOCOL)),
    ("6.9", "WINDOW_UPDATE of three bytes", raw(8, 0, 0, b"\0\0\1"), connection(SIZE)),
    ("6.9.1", "the connection's window above 2^31-1", WindowUpdateFrame(0, 2**31 - 1).serialize() * 2, connection(FLOW)),
    ("6.9.1", "a stream's window above 2^31-1", post(1) + WindowUpdateFrame(1, 2**31 - 1).serialize() * 2, stream(FLOW)),
    ("6.9.2", "SETTINGS lift an open stream's window above 2^31-1", post(1) + WindowUpdateFrame(1, 2**31 - 1 - 65_535).serialize() + settings({4: 65_536}), connection(FLOW)),
    ("6.10", "CONTINUATION after END_HEADERS", post(1) + ContinuationFrame(1, block(("x", "y")), flags=["END_HEADERS"]).serialize(), connection(PROTOCOL)),
    ("6.10", "CONTINUATION on another stream", headers(1, flags=["END_STREAM"]) + ContinuationFrame(3, block(("x", "y")), flags=["END_HEADERS"]).serialize(), connection(PROTOCOL)),
    ("6.10", "CONTINUATION on stream 0", headers(1, flags=["END_STREAM"]) + raw(9, 4, 0, block(("x", "y"))), connection(PROTOCOL)),
    ("6.10", "a header block over three frames", headers(1, flags=["END_STREAM"]) + ContinuationFrame(1, block(("x", "y"))).serialize() + ContinuationFrame(1, b"", flags=["END_HEADERS"]).serialize(), ignored),
    ("10.5", "CONTINUATION without end", headers(1, flags=["END_STREAM"]) + ContinuationFrame(1, b"").serialize() * 1000, connection(CALM, PROTOCOL)),
    # Requests.
    ("8.1", "HEADERS without END_STREAM inside a body", post(1) + headers(1, [("x", "y")], ["END_HEADERS"]), refused),
    ("8.1.1", "less body than content-length says", post(1, ("content-length", "5")) + data(1, b"abc", "END_STREAM"), refused),
    ("8.1.1", "more body than content-length says", post(1, ("content-length", "2")) + data(1, b"abc", "END_STREAM"), refused),
    ("8.1.1", "no body where content-length says there is one", headers(1, POST + [("content-length", "5")]), refused),
    ("8.2", "an upper-case field name", get(("X-Upper", "y")), refused),
    ("8.2.1", "a space in a field name", get(("x y", "z")), refused),
    ("8.2.1", "a colon inside a field name", get(("x:y", "z")), refused),
    ("8.2.1", "an empty field name", get(("", "z")), refused),
    ("8.2.1", "NUL in a value", get(("x", "a\0b")), refused),
    ("8.2.1", "CR in a value", get(("x", "a\rb")), refused),
    ("8.2.1", "LF in a value", get(("x", "a\nb")), refused),
    ("8.2.1", "a value with a space before it", get(("x", " a")), ("either", ("refused", "ignored"))),
    ("8.2.2", "connection", get(("connection", "close")), refused),
    ("8.2.2", "keep-alive", get(("keep-alive", "1")), refused),
    ("8.2.2", "proxy-connection", get(("proxy-connection", "close")), refused),
    ("8.2.2", "transfer-encoding", get(("transfer-encoding", "chunked")), refused),
    ("8.2.2", "upgrade", get(("upgrade", "websocket")), refused),
    ("8.2.2", "te with more than trailers", get(("te", "trailers, gzip")), refused),
    ("8.2.2", "te: trailers", get(("te", "trailers")), ignored),
    ("8.3", "a pseudo-header field after a field", headers(1, GET[:3] + [("x", "y"), GET[3]]), refused),
    ("8.3", "a pseudo-header field that nobody knows", headers(1, [(":what", "x")] + GET), refused),
    ("8.3", "a pseudo-header field of answers", headers(1, [(":status", "200")] + GET), refused),
    ("8.3", "a pseudo-header field among trailers", post(1) + headers(1, [(":path", "/admin")]), refused),
    ("8.3.1", "no :method", without(":method"), refused),
    ("8.3.1", "no :scheme", without(":scheme"), refused),
    ("8.3.1", "no :path", without(":path"), refused),
    ("8.3.1", "an empty :path", headers(1, [(n, "" if n == ":path" else v) for n, v in GET]), refused),
    ("8.3.1", "two :method", headers(1, [GET[0]] + GET), refused),
    ("8.3.1", "two :path", headers(1, [GET[2]] + GET), refused),
    ("8.3.1", "two :authority", headers(1, [GET[3]] + GET), refused),
    ("8.3.1", "host beside another :authority", get(("host", "admin")), refused),
    ("8.3.1", "userinfo in :authority", headers(1, GET[:3] + [(":authority", "user@cart")]), refused),
    ("8.3.1", "a :path that is no path", headers(1, [(n, "items" if n == ":path" else v) for n, v in GET]), refused),
    ("8.5", "CONNECT with :scheme and :path", headers(1, [(n, "CONNECT" if n == ":method" else v) for n, v in GET]), refused),
    ("8.5", "CONNECT without :authority", headers(1, [(":method", "CONNECT")]), refused),
    # Of the proxy's own: what is sound goes on.
    ("8.1", "a request", headers(1), ignored),
    ("8.1", "a body in pieces, with padding and trailers", post(1) + data(1, b"ab", "PADDED", pad_length=9) + data(1) + data(1, b"c") + headers(1, [("x-sum", "3")]), ignored),
]

# Where HTTP/2 is built anew, a library reads it (the crate h2). It says PROTOCOL_ERROR where the RFC has a code of its own,
# and takes these:
BY_LIBRARY = "--by-library" in sys.argv
LENIENT = {
    "the first frame is no SETTINGS": "ignored",
    # Dropped: the server gets the other trailers.
    "a pseudo-header field among trailers": "ignored",
}


class End(Exception):
    """The connection ended."""


class Silence(AssertionError):
    """Nothing came in time."""


class Peer:
    def __init__(self, target, hello):
        host, port = target.rsplit(":", 1)
        self.sock = socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT)
        self.buf, self.goaway, self.resets, self.status, self.pongs, self.done = b"", None, {}, {}, set(), set()
        self.decoder = Decoder()
        self.send(hello)

    def send(self, sent):
        try:
            self.sock.sendall(sent)
        except OSError:
            pass  # What it said before is still to be read.

    def turn(self):
        try:
            got = self.sock.recv(65_536)
        except socket.timeout:
            raise Silence("nothing came")
        except OSError:
            got = b""
        if not got:
            raise End
        self.buf += got
        while len(self.buf) >= 9:
            try:
                frame, length = Frame.parse_frame_header(memoryview(self.buf[:9]))
            except HyperframeError as error:
                raise AssertionError(f"we were sent what is no frame: {error}")
            if len(self.buf) < 9 + length:
                return
            frame.parse_body(memoryview(self.buf[9 : 9 + length]))
            self.buf = self.buf[9 + length :]
            self.take(frame)

    def turn_or_quiet(self):
        try:
            self.turn()
        except Silence:
            return False
        return True

    def take(self, frame):
        if isinstance(frame, GoAwayFrame):
            self.goaway = frame.error_code
        elif isinstance(frame, RstStreamFrame):
            self.resets[frame.stream_id] = frame.error_code
        elif isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags
            fields = dict(self.decoder.decode(frame.data))
            if ":status" in fields:
                self.status.setdefault(frame.stream_id, int(fields[":status"]))
        elif isinstance(frame, PingFrame) and "ACK" in frame.flags:
            self.pongs.add(bytes(frame.opaque_data))
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]).serialize())


def outcome(target, frames):
    hello = PREFACE + settings({})
    if isinstance(frames, tuple):
        hello, frames = frames[1], b""
    peer = Peer(target, hello)
    peer.send(frames)
    # Another stream, and a PING after it: both are answered where the connection goes on.
    peer.send(headers(99) + PingFrame(0, b"are you?").serialize())
    try:
        while 99 not in peer.status or b"are you?" not in peer.pongs:
            peer.turn()
        # What is said of the first stream may come after what is said of the last.
        peer.sock.settimeout(QUIET)
        while peer.turn_or_quiet():
            pass
    except End:
        pass
    alive = 99 in peer.status and b"are you?" in peer.pongs
    peer.sock.close()
    if peer.goaway not in (None, NO_ERROR):
        return ("connection", peer.goaway)
    bad = {number: code for number, code in peer.resets.items() if code != NO_ERROR}
    if alive and bad:
        return ("stream", sorted(bad.items())[0][1])
    if alive and 400 in peer.status.values():
        return ("refused", PROTOCOL)
    if alive:
        return ("ignored", None)
    return ("closed", None)


def right(expected, got, name):
    if BY_LIBRARY and name in LENIENT:
        return got[0] == LENIENT[name]
    kind, codes = expected
    if kind == "either":
        return got[0] in codes
    if kind == "ignored":
        return got[0] == "ignored"
    if BY_LIBRARY:
        codes = (*codes, PROTOCOL)
    if kind == "connection":
        return got[0] == "connection" and got[1] in codes
    if kind == "stream":
        return got[0] in ("stream", "connection") and got[1] in codes
    return got[0] == "refused" or got[0] in ("stream", "connection") and got[1] == PROTOCOL


def shown(what):
    kind, codes = what
    codes = codes if isinstance(codes, tuple) else (codes,)
    return f"{kind}({', '.join(NAMES[code] if isinstance(code, int) else code for code in codes if code is not None)})"


wrong = 0
for section, name, frames, expected in ROWS:
    try:
        got = outcome(sys.argv[1], frames)
    except AssertionError as error:
        got = (str(error), None)
    good = right(expected, got, name)
    wrong += not good
    print("ok   " if good else "WRONG", f"s{section:6} {name}: {shown(got)}", "" if good else f"and not {shown(expected)}", flush=True)
print(f"{len(ROWS)} rows, {wrong} wrong")
sys.exit(1 if wrong else 0)
