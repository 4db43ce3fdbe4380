//! Takes frames of either end, one by one, and hands each to whom it concerns.
//!
//! What is the same for both ends is here: the preface, blocks in pieces, settings, windows, and what there may be only
//! so many of.

use super::{Came, End, Link, Relay};
use crate::http2::frame::{self, Bad, Frame, HEAD_BYTES, Head, code, flag, kind};
use crate::limits::H2_HEADER_LIST_BYTES;

impl Relay {
    pub(super) fn broke(&mut self, end: End, bad: Bad) {
        let (Bad::Connection(code) | Bad::Stream(code)) = bad;
        match end {
            End::Client => self.client_broke(code),
            End::Server => self.server_broke(code),
        }
    }

    /// Takes whole frames; returns how many bytes that were.
    pub(super) fn frames(&mut self, end: End, bytes: &[u8]) -> Result<usize, Bad> {
        let mut at = 0;
        if end == End::Client && !self.prefaced {
            let Some(preface) = bytes.get(..frame::PREFACE.len()) else { return Ok(0) };
            if preface != frame::PREFACE {
                return Err(Bad::Connection(code::PROTOCOL_ERROR));
            }
            self.prefaced = true;
            at = preface.len();
        }
        while self.reads(end) {
            let rest = &bytes[at..];
            let Some(head) = Head::read(rest)? else { break };
            let Some(raw) = rest.get(..HEAD_BYTES + head.length) else { break };
            match self.frame(end, &head, raw) {
                Err(Bad::Stream(code)) => self.stream_broke(end, head.stream, code)?,
                other => other?,
            }
            at += raw.len();
        }
        Ok(at)
    }

    /// Whether another frame of this end is to be taken.
    fn reads(&self, end: End) -> bool {
        let there = match end {
            End::Client => !self.waits(),
            End::Server => matches!(self.link, Link::Greeting(_) | Link::Open),
        };
        there && !self.over
    }

    fn frame(&mut self, end: End, head: &Head, raw: &[u8]) -> Result<(), Bad> {
        let (now, side) = (self.now, self.side(end));
        let continued = side.assembly.as_ref().map(|assembly| assembly.head.stream);
        if continued.is_some_and(|stream| head.kind != kind::CONTINUATION || head.stream != stream) {
            return Err(Bad::Connection(code::PROTOCOL_ERROR));
        }
        if !side.heard && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Bad::Connection(code::PROTOCOL_ERROR));
        }
        let payload = &raw[HEAD_BYTES..];
        let calm = |taken: bool| if taken { Ok(()) } else { Err(Bad::Connection(code::ENHANCE_YOUR_CALM)) };
        match Frame::read(head, payload)? {
            Frame::Data(body) => {
                if body.is_empty() && !head.has(flag::END_STREAM) {
                    calm(side.floods.control.take(now))?;
                }
                match end {
                    End::Client => self.client_data(head, raw, &payload[body]),
                    End::Server => self.server_data(head, raw, &payload[body]),
                }
            }
            Frame::Headers(block) if head.has(flag::END_HEADERS) => {
                self.block(end, *head, Some(raw), &payload[block])
            }
            Frame::Headers(block) => {
                side.assemble(head, &payload[block], now);
                Ok(())
            }
            Frame::Continuation => match side.continued(payload, head.has(flag::END_HEADERS))? {
                Some(whole) => self.block(end, whole.head, None, &whole.block),
                None => Ok(()),
            },
            Frame::Settings(settings) => {
                calm(side.floods.settings.take(now))?;
                let by = side.settings(&settings);
                self.opened(end, by)
            }
            Frame::Ping(data) if head.has(flag::ACK) => {
                self.echoed(end, data);
                Ok(())
            }
            Frame::Ping(data) => {
                calm(side.floods.pings.take(now))?;
                frame::write_ping(&mut side.out, true, data);
                Ok(())
            }
            Frame::Window(more) => {
                calm(side.floods.control.take(now))?;
                if head.stream == 0 { side.widen(more) } else { self.widen(end, head.stream, more) }
            }
            Frame::Reset(code) => match end {
                End::Client => self.client_reset(head.stream, code),
                End::Server => self.server_reset(head.stream, code),
            },
            Frame::GoAway(last, _) => {
                if end == End::Server {
                    self.server_leaves(last);
                }
                Ok(())
            }
            Frame::Priority | Frame::Unknown => calm(side.floods.control.take(now)),
            Frame::SettingsAck => Ok(()),
        }
    }

    fn stream_broke(&mut self, end: End, id: u32, code: u32) -> Result<(), Bad> {
        match end {
            End::Client => self.client_stream_broke(id, code),
            End::Server => self.server_stream_broke(id, code),
        }
    }

    fn block(&mut self, end: End, head: Head, raw: Option<&[u8]>, bytes: &[u8]) -> Result<(), Bad> {
        let block = self
            .side(end)
            .decoder
            .decode(bytes, H2_HEADER_LIST_BYTES as usize)
            .map_err(|_| Bad::Connection(code::COMPRESSION_ERROR))?;
        match end {
            End::Client => self.client_block(head, raw, bytes, block),
            End::Server => self.server_block(&Came { head, raw, bytes, block: &block }),
        }
    }

    /// An end has said its settings: the windows of its streams change, and the server's may open the link.
    fn opened(&mut self, end: End, by: i64) -> Result<(), Bad> {
        for stream in &mut self.streams {
            let half = match end {
                End::Client => &mut stream.down,
                End::Server => &mut stream.up,
            };
            half.widen(by).map_err(|_| Bad::Connection(code::FLOW_CONTROL_ERROR))?;
        }
        if end == End::Server && matches!(self.link, Link::Greeting(_)) {
            self.link = Link::Open;
            self.send_pending();
        }
        Ok(())
    }

    fn widen(&mut self, end: End, id: u32, more: u32) -> Result<(), Bad> {
        let Some(place) = self.find(id) else { return self.idle(end, id) };
        let stream = &mut self.streams[place];
        let half = if end == End::Client { &mut stream.down } else { &mut stream.up };
        half.widen(i64::from(more))
    }

    /// A frame on a stream that is not there: one that never was is an error.
    pub(super) fn idle(&self, end: End, id: u32) -> Result<(), Bad> {
        let last = if end == End::Client { self.last } else { self.last_sent };
        if id > last || id.is_multiple_of(2) { Err(Bad::Connection(code::PROTOCOL_ERROR)) } else { Ok(()) }
    }
}
