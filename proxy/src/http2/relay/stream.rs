//! One stream of the relay: two bodies, each with its windows and with what waits for them.
//!
//! What a window of the receiver does not take is kept, and the sender is granted no more than the receiver takes:
//! nothing is kept of a reader that has said from the beginning that it takes nothing. Knows nothing of requests or of
//! policy.

use super::side::Side;
use crate::draft::Draft;
use crate::http2::frame::{Bad, HEAD_BYTES, Head, MAX_WINDOW, code, flag, kind, write_number};
use crate::limits::{H2_FRAME_BYTES, H2_STREAM_WINDOW};
use crate::state::OpenFlow;
use bytes::{Buf as _, BytesMut};
use std::sync::Arc;
use tokio::time::Instant;

/// One direction of a stream.
#[derive(Debug)]
pub(super) struct Half {
    /// What the receiver takes.
    pub(super) window: i64,
    /// What the sender may still send.
    pub(super) granted: i64,
    /// What has not gone on.
    pending: BytesMut,
    /// Trailers that have not.
    trailers: Option<Vec<u8>>,
    /// Since when what waits has not moved, and how much it was.
    blocked: Option<(Instant, usize)>,
    /// The sender has said all.
    pub(super) received: bool,
    /// The receiver has been told so.
    pub(super) sent: bool,
    /// What is left of the length that was said.
    expected: Option<u64>,
    /// Bytes of the body so far.
    pub(super) count: u64,
}

impl Half {
    pub(super) fn new(window: i64, granted: i64) -> Self {
        Self {
            window,
            granted,
            pending: BytesMut::new(),
            trailers: None,
            blocked: None,
            received: false,
            sent: false,
            expected: None,
            count: 0,
        }
    }

    pub(super) fn expect(&mut self, length: Option<u64>) {
        self.expected = length;
    }

    /// Whether the sender may say more: after END_STREAM it may not (§5.1).
    pub(super) fn still_open(&self) -> Result<(), Bad> {
        if self.received { Err(Bad::Stream(code::STREAM_CLOSED)) } else { Ok(()) }
    }

    /// Counts a piece of the body; it must fit what was granted and what was said.
    pub(super) fn take(&mut self, head: &Head, body: usize) -> Result<(), Bad> {
        self.still_open()?;
        self.granted -= i64::try_from(head.length).unwrap_or(i64::MAX);
        if self.granted < 0 {
            return Err(Bad::Stream(code::FLOW_CONTROL_ERROR));
        }
        self.count += body as u64;
        if let Some(expected) = &mut self.expected {
            *expected = expected.checked_sub(body as u64).ok_or(Bad::Stream(code::PROTOCOL_ERROR))?;
        }
        if head.has(flag::END_STREAM) { self.end() } else { Ok(()) }
    }

    /// The sender has said all: it must be as much as was said.
    pub(super) fn end(&mut self) -> Result<(), Bad> {
        self.still_open()?;
        self.received = true;
        match self.expected {
            None | Some(0) => Ok(()),
            Some(_) => Err(Bad::Stream(code::PROTOCOL_ERROR)),
        }
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.trailers.is_none()
    }

    /// The receiver's window opens.
    pub(super) fn widen(&mut self, more: i64) -> Result<(), Bad> {
        self.window += more;
        if self.window > i64::from(MAX_WINDOW) {
            return Err(Bad::Stream(code::FLOW_CONTROL_ERROR));
        }
        Ok(())
    }

    /// Passes a frame on as it is, or keeps what is in it.
    pub(super) fn data(&mut self, from: &mut Side, to: &mut Side, raw: &[u8], body: &[u8], open: bool) {
        let length = i64::try_from(raw.len() - HEAD_BYTES).unwrap_or(i64::MAX);
        if open && self.is_empty() && self.window >= length && to.room >= length {
            self.window -= length;
            to.room -= length;
            to.pass(raw);
            to.sent_data();
            from.credit(raw.len() - HEAD_BYTES);
            self.sent = self.received;
        } else {
            // The padding goes no further.
            from.credit(raw.len() - HEAD_BYTES - body.len());
            self.pending.extend_from_slice(body);
            from.kept += body.len();
        }
    }

    /// Keeps what ends the body.
    pub(super) fn trail(&mut self, block: Vec<u8>) {
        self.trailers = Some(block);
    }

    /// Puts a body of ours in the place of what came.
    pub(super) fn replace(&mut self, from: &mut Side, body: &[u8]) {
        self.forget(from);
        self.pending.extend_from_slice(body);
        self.received = true;
    }

    /// Throws away what waits.
    pub(super) fn forget(&mut self, from: &mut Side) {
        from.release(self.pending.len());
        self.pending = BytesMut::new();
        self.trailers = None;
        self.blocked = None;
    }

    /// Sends what waits as far as the windows are open. `ours`: it came from nobody.
    pub(super) fn flush(&mut self, id: u32, from: &mut Side, to: &mut Side, ours: bool) {
        if self.sent || (self.is_empty() && !self.received) {
            return;
        }
        while !self.pending.is_empty() {
            let room = self.window.min(to.room);
            let length = self.pending.len().min(H2_FRAME_BYTES).min(usize::try_from(room).unwrap_or(0));
            if length == 0 || to.is_full() {
                return;
            }
            let last = self.received && length == self.pending.len() && self.trailers.is_none();
            let flags = if last { flag::END_STREAM } else { 0 };
            Head { length, kind: kind::DATA, flags, stream: id }.write(&mut to.out);
            to.out.extend_from_slice(&self.pending[..length]);
            to.sent_data();
            self.pending.advance(length);
            self.window -= length as i64;
            to.room -= length as i64;
            if !ours {
                from.release(length);
            }
            self.sent = last;
        }
        self.pending = BytesMut::new();
        if let Some(trailers) = self.trailers.take() {
            to.send_block(id, true, &trailers);
            self.sent = true;
        } else if self.received && !self.sent {
            Head { length: 0, kind: kind::DATA, flags: flag::END_STREAM, stream: id }.write(&mut to.out);
            self.sent = true;
        }
    }

    /// How much waits.
    #[cfg(any(test, fuzzing))]
    pub(super) fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Since when its receiver has taken nothing of what waits for it.
    pub(super) fn blocked(&mut self, now: Instant) -> Option<Instant> {
        let waits = self.pending.len();
        match &mut self.blocked {
            _ if waits == 0 => self.blocked = None,
            // More has come: its receiver has not moved.
            Some((_, before)) if waits >= *before => *before = waits,
            other => *other = Some((now, waits)),
        }
        self.blocked.map(|(since, _)| since)
    }

    /// Grants the sender what the receiver takes now, if that is worth a frame.
    pub(super) fn grant(&mut self, id: u32, from: &mut Side) {
        let kept = i64::try_from(self.pending.len()).unwrap_or(i64::MAX);
        let want = (self.window - kept).clamp(0, i64::from(H2_STREAM_WINDOW));
        if self.received || want <= self.granted || self.granted * 2 > want {
            return;
        }
        let more = u32::try_from(want - self.granted).unwrap_or_default();
        write_number(&mut from.out, kind::WINDOW_UPDATE, id, more);
        self.granted = want;
    }
}

/// Where a stream is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Its request waits: the server takes no more streams now. `true`: and it has no body.
    Held(Vec<u8>, bool),
    /// The server has its request.
    Open,
    /// We have answered; what the client still sends is thrown away.
    Ours,
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// A request and its answer.
    Message,
    /// Nothing yet: CONNECT, to which the server has not agreed. What the client says meanwhile waits, for it is of a
    /// tunnel or of nothing.
    Asked,
    /// What CONNECT asked for (RFC 9113 §8.5, RFC 8441 §4): data alone, and it ends as TCP does.
    Tunnel,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) at: At,
    pub(super) carries: Carries,
    pub(super) up: Half,
    pub(super) down: Half,
    pub(super) said: Arc<crate::judge::Said>,
    pub(super) flow: Option<OpenFlow>,
    /// When its request came.
    pub(super) since: Instant,
    /// Until it is written.
    pub(super) record: Option<Box<Draft>>,
    pub(super) grpc: bool,
    /// It asks for no body.
    pub(super) to_head: bool,
    /// The head of the answer has gone to the client.
    pub(super) answered: bool,
    pub(super) interims: usize,
    /// The server wants no more of the request: what still comes is thrown away, and the client told with this code
    /// when it has the answer.
    pub(super) unwanted: Option<u32>,
}

impl Stream {
    /// Sends the server what waits for it, as far as it takes it.
    pub(super) fn flush_up(&mut self, from: &mut Side, to: &mut Side) {
        if self.carries != Carries::Asked {
            self.up.flush(self.id, from, to, false);
        }
    }

    /// The server does not open the tunnel: what the client has said for it goes nowhere, and the request is whole.
    pub(super) fn tunnel_refused(&mut self, from: &mut Side, to: &mut Side) {
        self.carries = Carries::Message;
        self.up.forget(from);
        self.unwanted = Some(code::NO_ERROR);
        if !self.up.sent {
            Head { length: 0, kind: kind::DATA, flags: flag::END_STREAM, stream: self.id }.write(&mut to.out);
            self.up.sent = true;
        }
    }
}
