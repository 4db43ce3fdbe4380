//! HTTP/2 frames (RFC 9113 §4 and §6): each read strictly, and those of ours written.
//!
//! Knows of one frame at a time, and nothing of streams' states, of header blocks' contents or of policy. Reserved bits
//! are ignored, unknown kinds and flags too, as the RFC has it (§4.1, §5.5); whatever else is not as it says is an
//! error with its code. Called by the relay.

use crate::limits::H2_FRAME_BYTES;
use std::ops::Range;

/// A frame's head, in bytes.
pub const HEAD_BYTES: usize = 9;

/// What a client's connection begins with (§3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
pub mod kind {
    #![allow(missing_docs)]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags.
pub mod flag {
    #![allow(missing_docs)]
    pub const END_STREAM: u8 = 0x01;
    pub const ACK: u8 = 0x01;
    pub const END_HEADERS: u8 = 0x04;
    pub const PADDED: u8 = 0x08;
    pub const PRIORITY: u8 = 0x20;
}

/// Settings (§6.5.2).
pub mod setting {
    #![allow(missing_docs)]
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    /// RFC 8441 §3.
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// Error codes (§7).
pub mod code {
    #![allow(missing_docs)]
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// The largest flow-control window (§6.9.1).
pub const MAX_WINDOW: u32 = (1 << 31) - 1;

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The connection cannot go on.
    Connection(u32),
    /// Its stream cannot.
    Stream(u32),
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes that follow.
    pub length: usize,
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The stream, without the reserved bit.
    pub stream: u32,
}

impl Head {
    /// The head that these bytes begin with, once they are enough; a frame that is too large is refused before it is
    /// waited for.
    ///
    /// # Errors
    /// `FRAME_SIZE_ERROR`.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, Bad> {
        let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [a, b, c, kind, flags, stream @ ..] = *head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if length > H2_FRAME_BYTES {
            return Err(Bad::Connection(code::FRAME_SIZE_ERROR));
        }
        Ok(Some(Self { length, kind, flags, stream: u32::from_be_bytes(stream) & MAX_WINDOW }))
    }

    /// Whether this flag is set.
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Appends it.
    pub fn write(&self, out: &mut Vec<u8>) {
        // What is longer is cut by the caller: no frame has more than three bytes of length.
        let length = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        out.extend_from_slice(&[length[1], length[2], length[3], self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
    }
}

/// A frame, read. Ranges are places in its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Of a body, without its padding.
    Data(Range<usize>),
    /// A header block, or its beginning.
    Headers(Range<usize>),
    /// Ignored: RFC 9113 §5.3.2 has it so.
    Priority,
    /// A stream ends, with this code.
    Reset(u32),
    /// Settings, in order.
    Settings(Vec<(u16, u32)>),
    /// Settings have been taken.
    SettingsAck,
    /// An echo is asked for, or is one.
    Ping([u8; 8]),
    /// No stream after this one was looked at; with this code.
    GoAway(u32, u32),
    /// So many bytes more.
    Window(u32),
    /// The header block goes on.
    Continuation,
    /// Not known here.
    Unknown,
}

impl Frame {
    /// Reads a frame's payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(head: &Head, payload: &[u8]) -> Result<Self, Bad> {
        let stream = head.stream;
        match head.kind {
            kind::DATA => Ok(Self::Data(unpadded(head, payload, 0)?)),
            kind::HEADERS => {
                let priority = if head.has(flag::PRIORITY) { 5 } else { 0 };
                let block = unpadded(head, payload, priority)?;
                if priority > 0 && number(&payload[block.start - priority..]) & MAX_WINDOW == stream {
                    return Err(Bad::Connection(code::PROTOCOL_ERROR));
                }
                Ok(Self::Headers(block))
            }
            kind::PRIORITY => {
                on_stream(head)?;
                // Its own size is the one error that hurts its stream alone (§6.3).
                match payload {
                    [dependency @ .., _] if payload.len() == 5 => match number(dependency) & MAX_WINDOW {
                        dependency if dependency == stream => Err(Bad::Stream(code::PROTOCOL_ERROR)),
                        _ => Ok(Self::Priority),
                    },
                    _ => Err(Bad::Stream(code::FRAME_SIZE_ERROR)),
                }
            }
            kind::RST_STREAM => {
                on_stream(head)?;
                sized(payload, 4)?;
                Ok(Self::Reset(number(payload)))
            }
            kind::SETTINGS => settings(head, payload),
            // Nobody may push: we say so to servers, and clients never may (§8.4).
            kind::PUSH_PROMISE => Err(Bad::Connection(code::PROTOCOL_ERROR)),
            kind::PING => {
                on_connection(head)?;
                let echo = payload.try_into().map_err(|_| Bad::Connection(code::FRAME_SIZE_ERROR))?;
                Ok(Self::Ping(echo))
            }
            kind::GOAWAY => {
                on_connection(head)?;
                if payload.len() < 8 {
                    return Err(Bad::Connection(code::FRAME_SIZE_ERROR));
                }
                Ok(Self::GoAway(number(payload) & MAX_WINDOW, number(&payload[4..])))
            }
            kind::WINDOW_UPDATE => {
                sized(payload, 4)?;
                match number(payload) & MAX_WINDOW {
                    0 if stream == 0 => Err(Bad::Connection(code::PROTOCOL_ERROR)),
                    0 => Err(Bad::Stream(code::PROTOCOL_ERROR)),
                    more => Ok(Self::Window(more)),
                }
            }
            kind::CONTINUATION => on_stream(head).map(|()| Self::Continuation),
            _ => Ok(Self::Unknown),
        }
    }
}

fn on_stream(head: &Head) -> Result<(), Bad> {
    if head.stream == 0 { Err(Bad::Connection(code::PROTOCOL_ERROR)) } else { Ok(()) }
}

fn on_connection(head: &Head) -> Result<(), Bad> {
    if head.stream == 0 { Ok(()) } else { Err(Bad::Connection(code::PROTOCOL_ERROR)) }
}

fn sized(payload: &[u8], length: usize) -> Result<(), Bad> {
    if payload.len() == length { Ok(()) } else { Err(Bad::Connection(code::FRAME_SIZE_ERROR)) }
}

/// The first four bytes; the caller has looked that they are there.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// What is between the padding's length, `skip` more bytes, and the padding.
fn unpadded(head: &Head, payload: &[u8], skip: usize) -> Result<Range<usize>, Bad> {
    on_stream(head)?;
    let padded = head.has(flag::PADDED);
    let start = usize::from(padded) + skip;
    let too_short = Bad::Connection(code::FRAME_SIZE_ERROR);
    let room = payload.len().checked_sub(start).ok_or(too_short)?;
    let padding = if padded { usize::from(payload[0]) } else { 0 };
    // More padding than there is room for (§6.1, §6.2).
    let length = room.checked_sub(padding).ok_or(Bad::Connection(code::PROTOCOL_ERROR))?;
    Ok(start..start + length)
}

fn settings(head: &Head, payload: &[u8]) -> Result<Frame, Bad> {
    on_connection(head)?;
    if head.has(flag::ACK) {
        sized(payload, 0)?;
        return Ok(Frame::SettingsAck);
    }
    let (all, rest) = payload.as_chunks::<6>();
    if !rest.is_empty() {
        return Err(Bad::Connection(code::FRAME_SIZE_ERROR));
    }
    let mut settings = Vec::with_capacity(all.len());
    for [a, b, value @ ..] in all {
        let (name, value) = (u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*value));
        match name {
            setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL if value > 1 => {
                return Err(Bad::Connection(code::PROTOCOL_ERROR));
            }
            setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                return Err(Bad::Connection(code::FLOW_CONTROL_ERROR));
            }
            setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                return Err(Bad::Connection(code::PROTOCOL_ERROR));
            }
            _ => settings.push((name, value)),
        }
    }
    Ok(Frame::Settings(settings))
}

/// Appends a frame whose payload is a number.
pub fn write_number(out: &mut Vec<u8>, kind: u8, stream: u32, number: u32) {
    Head { length: 4, kind, flags: 0, stream }.write(out);
    out.extend_from_slice(&number.to_be_bytes());
}

/// Appends SETTINGS.
pub fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    Head { length: settings.len() * 6, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(out);
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends that settings have been taken.
pub fn write_settings_ack(out: &mut Vec<u8>) {
    Head { length: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(out);
}

/// Appends PING, or its echo.
pub fn write_ping(out: &mut Vec<u8>, echo: bool, data: [u8; 8]) {
    Head { length: 8, kind: kind::PING, flags: if echo { flag::ACK } else { 0 }, stream: 0 }.write(out);
    out.extend_from_slice(&data);
}

/// Appends GOAWAY.
pub fn write_go_away(out: &mut Vec<u8>, last: u32, code: u32) {
    Head { length: 8, kind: kind::GOAWAY, flags: 0, stream: 0 }.write(out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
}

/// Appends a header block in as many frames as it needs.
pub fn write_block(out: &mut Vec<u8>, stream: u32, end: bool, block: &[u8]) {
    let mut rest = block;
    let mut kind = kind::HEADERS;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(H2_FRAME_BYTES));
        let mut flags = if after.is_empty() { flag::END_HEADERS } else { 0 };
        if end && kind == kind::HEADERS {
            flags |= flag::END_STREAM;
        }
        Head { length: piece.len(), kind, flags, stream }.write(out);
        out.extend_from_slice(piece);
        if after.is_empty() {
            return;
        }
        rest = after;
        kind = kind::CONTINUATION;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<Frame, Bad> {
        let mut bytes = Vec::new();
        Head { length: payload.len(), kind, flags, stream }.write(&mut bytes);
        let head = Head::read(&bytes).expect("small").expect("whole");
        assert_eq!(head, Head { length: payload.len(), kind, flags, stream: stream & MAX_WINDOW });
        Frame::read(&head, payload)
    }

    #[test]
    fn frames_as_they_should_be() {
        let padded = [2, b'a', b'b', 0, 0];
        for (got, expected) in [
            (read(kind::DATA, 0, 1, b"ab"), Frame::Data(0..2)),
            (read(kind::DATA, flag::PADDED, 1, &padded), Frame::Data(1..3)),
            (read(kind::DATA, flag::PADDED, 1, &[0]), Frame::Data(1..1)),
            (read(kind::DATA, 0xf0, 1, b""), Frame::Data(0..0)),
            (read(kind::HEADERS, 0, 1, b"ab"), Frame::Headers(0..2)),
            (read(kind::HEADERS, flag::PRIORITY, 1, &[0, 0, 0, 3, 1, b'a']), Frame::Headers(5..6)),
            (
                read(kind::HEADERS, flag::PRIORITY | flag::PADDED, 1, &[1, 0, 0, 0, 3, 1, 7, 0]),
                Frame::Headers(6..7),
            ),
            (read(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 1]), Frame::Priority),
            (read(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]), Frame::Reset(8)),
            (
                read(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0, 0, 9, 0, 0, 0, 1]),
                Frame::Settings(vec![(4, 256), (9, 1)]),
            ),
            (read(kind::SETTINGS, flag::ACK, 0, b""), Frame::SettingsAck),
            (read(kind::PING, 0, 0, b"12345678"), Frame::Ping(*b"12345678")),
            (read(kind::GOAWAY, 0, 0, &[0x80, 0, 0, 5, 0, 0, 0, 2, b'x']), Frame::GoAway(5, 2)),
            (read(kind::WINDOW_UPDATE, 0, 0, &[0x80, 0, 0, 1]), Frame::Window(1)),
            (read(kind::CONTINUATION, 0, 1, b"ab"), Frame::Continuation),
            (read(0xfa, 0xff, 0, b"ab"), Frame::Unknown),
            (read(kind::DATA, 0, 1 << 31 | 1, b"ab"), Frame::Data(0..2)),
        ] {
            assert_eq!(got, Ok(expected));
        }
    }

    #[test]
    fn frames_as_they_should_not_be() {
        use Bad::{Connection, Stream};
        use code::{FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, PROTOCOL_ERROR};
        for (what, got, expected) in [
            ("DATA on 0", read(kind::DATA, 0, 0, b"a"), Connection(PROTOCOL_ERROR)),
            ("no padding length", read(kind::DATA, flag::PADDED, 1, b""), Connection(FRAME_SIZE_ERROR)),
            ("too much padding", read(kind::DATA, flag::PADDED, 1, &[2, 0]), Connection(PROTOCOL_ERROR)),
            ("HEADERS on 0", read(kind::HEADERS, 0, 0, b"a"), Connection(PROTOCOL_ERROR)),
            ("no priority", read(kind::HEADERS, flag::PRIORITY, 1, &[0; 4]), Connection(FRAME_SIZE_ERROR)),
            (
                "padding over the priority",
                read(kind::HEADERS, flag::PADDED | flag::PRIORITY, 1, &[1, 0, 0, 0, 0, 0]),
                Connection(PROTOCOL_ERROR),
            ),
            (
                "its own parent",
                read(kind::HEADERS, flag::PRIORITY, 1, &[0, 0, 0, 1, 0]),
                Connection(PROTOCOL_ERROR),
            ),
            ("PRIORITY on 0", read(kind::PRIORITY, 0, 0, &[0; 5]), Connection(PROTOCOL_ERROR)),
            ("a short PRIORITY", read(kind::PRIORITY, 0, 1, &[0; 4]), Stream(FRAME_SIZE_ERROR)),
            ("its own parent", read(kind::PRIORITY, 0, 1, &[0x80, 0, 0, 1, 0]), Stream(PROTOCOL_ERROR)),
            ("RST_STREAM on 0", read(kind::RST_STREAM, 0, 0, &[0; 4]), Connection(PROTOCOL_ERROR)),
            ("a short RST_STREAM", read(kind::RST_STREAM, 0, 1, &[0; 3]), Connection(FRAME_SIZE_ERROR)),
            ("SETTINGS on 1", read(kind::SETTINGS, 0, 1, b""), Connection(PROTOCOL_ERROR)),
            ("SETTINGS of 5", read(kind::SETTINGS, 0, 0, &[0; 5]), Connection(FRAME_SIZE_ERROR)),
            ("an ACK of 6", read(kind::SETTINGS, flag::ACK, 0, &[0; 6]), Connection(FRAME_SIZE_ERROR)),
            ("push 2", read(kind::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), Connection(PROTOCOL_ERROR)),
            (
                "a window of 2^31",
                read(kind::SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
                Connection(FLOW_CONTROL_ERROR),
            ),
            (
                "frames of 16383",
                read(kind::SETTINGS, 0, 0, &[0, 5, 0, 0, 0x3f, 0xff]),
                Connection(PROTOCOL_ERROR),
            ),
            ("frames of 2^24", read(kind::SETTINGS, 0, 0, &[0, 5, 1, 0, 0, 0]), Connection(PROTOCOL_ERROR)),
            ("PUSH_PROMISE", read(kind::PUSH_PROMISE, 4, 1, &[0; 4]), Connection(PROTOCOL_ERROR)),
            ("PING on 1", read(kind::PING, 0, 1, &[0; 8]), Connection(PROTOCOL_ERROR)),
            ("PING of 7", read(kind::PING, 0, 0, &[0; 7]), Connection(FRAME_SIZE_ERROR)),
            ("GOAWAY on 1", read(kind::GOAWAY, 0, 1, &[0; 8]), Connection(PROTOCOL_ERROR)),
            ("GOAWAY of 7", read(kind::GOAWAY, 0, 0, &[0; 7]), Connection(FRAME_SIZE_ERROR)),
            ("WINDOW_UPDATE of 5", read(kind::WINDOW_UPDATE, 0, 1, &[0; 5]), Connection(FRAME_SIZE_ERROR)),
            ("by 0", read(kind::WINDOW_UPDATE, 0, 0, &[0x80, 0, 0, 0]), Connection(PROTOCOL_ERROR)),
            ("by 0 on 1", read(kind::WINDOW_UPDATE, 0, 1, &[0; 4]), Stream(PROTOCOL_ERROR)),
            ("CONTINUATION on 0", read(kind::CONTINUATION, 0, 0, b""), Connection(PROTOCOL_ERROR)),
        ] {
            assert_eq!(got, Err(expected), "{what}");
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_not_waited_for() {
        assert_eq!(Head::read(&[0, 0x40, 0, 0, 0, 0, 0, 0]), Ok(None), "not a whole head");
        assert!(Head::read(&[0, 0x40, 0, 0, 0, 0, 0, 0, 1]).is_ok_and(|head| head.is_some()));
        assert_eq!(Head::read(&[0, 0x40, 1, 0, 0, 0, 0, 0, 1]), Err(Bad::Connection(code::FRAME_SIZE_ERROR)));
        // "HTTP/1.1 ": a server that speaks no HTTP/2.
        assert_eq!(Head::read(b"HTTP/1.1 "), Err(Bad::Connection(code::FRAME_SIZE_ERROR)));
    }

    #[test]
    fn a_block_is_cut_where_a_frame_is_full() {
        for (length, frames) in [(0, 1), (1, 1), (H2_FRAME_BYTES, 1), (H2_FRAME_BYTES + 1, 2), (40_000, 3)] {
            let block: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).expect("small")).collect();
            let mut out = Vec::new();
            write_block(&mut out, 7, true, &block);
            let (mut rest, mut got, mut count) = (&out[..], Vec::new(), 0);
            while let Ok(Some(head)) = Head::read(rest) {
                assert_eq!(head.has(flag::END_STREAM), count == 0);
                got.extend_from_slice(&rest[HEAD_BYTES..HEAD_BYTES + head.length]);
                rest = &rest[HEAD_BYTES + head.length..];
                count += 1;
                assert_eq!(head.has(flag::END_HEADERS), rest.is_empty());
            }
            assert_eq!((got, count), (block, frames));
        }
    }
}
