//! The fast path of HTTP/2: heads are judged, and the client's own bytes go on.
//!
//! One connection to the server for the client's one, with the same numbers for the same streams. Header blocks are
//! always read; they go on as they came for as long as the receiver's table is the sender's, which ends for good with
//! the first block that changed the table and did not go on. Windows, SETTINGS, PING and GOAWAY are each connection's
//! own. No I/O and no clock: [`io`] brings bytes and time. Knows policy by the proxy's judge alone.

mod client;
mod flood;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(super) mod io;
pub(super) mod message;
mod server;
mod side;
mod stream;

use crate::answer::Refusal;
use crate::draft::Ends;
use crate::http2::frame::{self, Head, MAX_WINDOW, code, flag, setting};
use crate::http2::hpack::{Block, Encoder};
use crate::limits::{
    H2_HANDSHAKE_TIMEOUT, H2_HEADER_LIST_BYTES, H2_LAST_CALL, H2_RESET_STREAMS, H2_STALL_TIMEOUT,
    H2_STREAM_WINDOW, H2_STREAMS, H2_WINDOW_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT, REQUEST_TIMEOUT,
};
use crate::proxy::Proxy;
use crate::service::route::Client;
use crate::share::Streams;
use crate::state::Wake;
use message::Rewrite;
use side::Side;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use stream::{At, Carries, Half, Stream};
use tokio::time::Instant;

/// The two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

/// The connection to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Nobody needs it yet.
    None,
    /// A request waits for it.
    Dialling,
    /// It is there, and the server has not said its settings.
    Greeting(Instant),
    /// It serves.
    Open,
    /// The server has left, or is leaving.
    Gone,
}

/// A header block that came whole.
struct Came<'a> {
    head: Head,
    /// The frame, if it was one.
    raw: Option<&'a [u8]>,
    bytes: &'a [u8],
    block: &'a Block,
}

impl Came<'_> {
    fn end(&self) -> bool {
        self.head.has(flag::END_STREAM)
    }

    /// Sends it on, as it came where that can be.
    fn pass(&self, to: &mut Side, rewrite: Option<&Rewrite>) {
        let stream = self.head.stream;
        if !to.mirror || rewrite.is_some() {
            let block = self.resolved(rewrite);
            self.keep_back(to);
            to.send_block(stream, self.end(), &block);
        } else if let Some(raw) = self.raw {
            to.pass(raw);
        } else {
            frame::write_block(&mut to.out, stream, self.end(), self.bytes);
        }
    }

    /// It does not go on as it came: if it changed the sender's table, the receiver's is another from now on.
    fn keep_back(&self, to: &mut Side) {
        if self.block.changed {
            to.part();
        }
    }

    /// Its fields, such that they need no table.
    fn resolved(&self, rewrite: Option<&Rewrite>) -> Vec<u8> {
        if let Some(rewrite) = rewrite {
            return rewrite.encode(&self.block.lines, self.bytes);
        }
        let mut encoder = Encoder::default();
        self.block.lines.iter().for_each(|line| encoder.line(line, self.bytes));
        encoder.finish()
    }
}

/// A request that waits for the connection to its server.
#[derive(Debug)]
struct Pending {
    head: Head,
    bytes: Vec<u8>,
    block: Block,
    rewrite: Rewrite,
}

/// The connection is to end.
#[derive(Debug)]
struct Leaving {
    since: Instant,
    /// The client has heard of it: what it opens from here on it opens in vain.
    heard: bool,
}

/// What we ask for to learn when GOAWAY was heard.
const LAST_CALL: [u8; 8] = *b"lastcall";

/// One client's connection.
#[derive(Debug)]
struct Relay {
    proxy: Arc<Proxy>,
    who: Client,
    ends: Ends,
    /// The client was told that it may extend CONNECT.
    offers: bool,
    client: Side,
    server: Side,
    link: Link,
    /// By number. Boxed: the oldest usually ends first, and those after it move up.
    #[expect(clippy::vec_box, reason = "pointers are moved in place of streams")]
    streams: Vec<Box<Stream>>,
    /// What they take of their endpoint's.
    places: Streams,
    /// Some of them wait for the server to take more.
    holding: bool,
    /// The client's newest stream, and the server's.
    last: u32,
    last_sent: u32,
    /// Streams that we reset: what is still on its way is no error.
    forgotten: VecDeque<u32>,
    /// What we told the server that it may send on each stream.
    offered: u32,
    pending: Option<Pending>,
    leaving: Option<Leaving>,
    wake: Arc<Wake>,
    started: Instant,
    /// When the last stream ended.
    idle: Instant,
    now: Instant,
    prefaced: bool,
    /// Since when the one of the bodies that wait for a window has waited that has waited longest.
    blocked: Option<Instant>,
    /// No request that waits for its answer has waited for longer than since then.
    asked: Option<Instant>,
    /// Its endpoint holds too many bytes, and this connection some of them.
    crowded: bool,
    /// The server takes no new streams.
    refusing: bool,
    /// The client is not there any more.
    client_gone: bool,
    /// Nothing is read or served any longer; what waits for the client is still written.
    over: bool,
}

impl Relay {
    fn new(proxy: Arc<Proxy>, who: Client, places: Streams, now: Instant) -> Self {
        let mut client = Side::new(now);
        let offers = proxy.offers_upgrades(&who);
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, H2_STREAMS),
            (setting::INITIAL_WINDOW_SIZE, H2_STREAM_WINDOW),
            (setting::MAX_HEADER_LIST_SIZE, H2_HEADER_LIST_BYTES),
            (setting::ENABLE_CONNECT_PROTOCOL, 1),
        ];
        client.greet(if offers { &settings } else { &settings[..3] });
        Self {
            proxy,
            who,
            ends: Ends::default(),
            offers,
            client,
            server: Side::new(now),
            link: Link::None,
            streams: Vec::new(),
            places,
            holding: false,
            last: 0,
            last_sent: 0,
            forgotten: VecDeque::new(),
            offered: 0,
            pending: None,
            leaving: None,
            wake: Arc::default(),
            started: now,
            idle: now,
            now,
            prefaced: false,
            blocked: None,
            asked: None,
            crowded: false,
            refusing: false,
            client_gone: false,
            over: false,
        }
    }

    fn side(&mut self, end: End) -> &mut Side {
        match end {
            End::Client => &mut self.client,
            End::Server => &mut self.server,
        }
    }

    /// Whether more is to be read of this end: nothing while what it would add to has no room.
    fn wants(&self, end: End) -> bool {
        let room = !self.client.is_full() && !self.server.is_full();
        // What the server says waits for the client, whose windows are heard all the same.
        let held_up = match end {
            End::Client => self.waits(),
            End::Server => self.crowded && self.server.kept > 0,
        };
        !self.over && room && !held_up
    }

    /// A request waits for its server: those after it keep their order.
    fn waits(&self) -> bool {
        self.pending.is_some()
    }

    /// What it holds of bytes that were read and have not gone on.
    fn held(&self) -> usize {
        self.client.held() + self.server.held()
    }

    /// Takes bytes of one end.
    fn feed(&mut self, end: End, bytes: &[u8], now: Instant) {
        self.now = now;
        let waited = self.waits();
        let mut kept = std::mem::take(&mut self.side(end).rest);
        let all = if kept.is_empty() {
            bytes
        } else {
            kept.extend_from_slice(bytes);
            &kept
        };
        let taken = match self.frames(end, all) {
            Ok(taken) => taken,
            Err(bad) => return self.broke(end, bad),
        };
        if kept.is_empty() {
            self.side(end).rest.extend_from_slice(&bytes[taken..]);
        } else {
            kept.drain(..taken);
            self.side(end).rest = kept;
        }
        self.flush();
        if waited {
            self.resume();
        }
    }

    /// Takes what the client said while a request waited for its server.
    fn resume(&mut self) {
        if !self.waits() && !self.client.rest.is_empty() {
            self.feed(End::Client, &[], self.now);
        }
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.streams.binary_search_by_key(&id, |stream| stream.id).ok()
    }

    /// Sends what the windows have opened for, and grants what has gone.
    fn flush(&mut self) {
        let open = self.link == Link::Open;
        self.blocked = None;
        for stream in &mut self.streams {
            let ours = stream.at == At::Ours;
            if open && stream.at == At::Open {
                stream.flush_up(&mut self.client, &mut self.server);
                stream.down.grant(stream.id, &mut self.server);
            }
            if !ours && stream.unwanted.is_none() {
                stream.up.grant(stream.id, &mut self.client);
            }
            stream.down.flush(stream.id, &mut self.server, &mut self.client, ours);
            let since = [stream.up.blocked(self.now), stream.down.blocked(self.now)];
            self.blocked = self.blocked.into_iter().chain(since.into_iter().flatten()).min();
        }
        self.settle();
        self.admit();
    }

    /// Takes out the streams that have ended.
    fn settle(&mut self) {
        let mut place = 0;
        while let Some(stream) = self.streams.get_mut(place) {
            let thrown_away = stream.at == At::Ours || stream.unwanted.is_some();
            let asked = if thrown_away { stream.up.received } else { stream.up.sent };
            // What is still to come of a request that has its answer is not waited for without end.
            let enough = thrown_away && (stream.unwanted.is_some() || stream.up.granted <= 0);
            // Of a tunnel either end may be the last to speak.
            if !stream.down.sent || (stream.carries == Carries::Tunnel && !asked && !enough) {
                place += 1;
                continue;
            }
            self.proxy.finish_stream(stream);
            if asked {
                self.remove(place);
            } else if enough {
                let code = stream.unwanted.unwrap_or(code::NO_ERROR);
                self.reset_client(place, code);
            } else {
                place += 1;
            }
        }
    }

    /// Resets the streams of which something has waited too long for a window.
    fn cut_blocked(&mut self) {
        let now = self.now;
        let late = |half: &mut Half| half.blocked(now).is_some_and(|since| now >= since + H2_WINDOW_TIMEOUT);
        let mut place = 0;
        while let Some(stream) = self.streams.get_mut(place) {
            if !late(&mut stream.up) && !late(&mut stream.down) {
                place += 1;
                continue;
            }
            if let Some(record) = &mut stream.record {
                "window_stalled".clone_into(&mut record.error);
            }
            if stream.at == At::Open && self.link == Link::Open {
                self.server.reset(stream.id, code::CANCEL);
            }
            self.reset_client(place, code::CANCEL);
        }
    }

    /// Answers the requests that have waited too long for their server.
    fn cut_unanswered(&mut self) {
        let waits = |stream: &Stream| stream.at != At::Ours && !stream.answered && !stream.grpc;
        let now = self.now;
        for place in 0..self.streams.len() {
            let stream = &self.streams[place];
            if waits(stream) && now >= stream.since + REQUEST_TIMEOUT {
                let whole = stream.up.received || stream.carries == Carries::Asked;
                if stream.at == At::Open && self.link == Link::Open {
                    self.server.reset(stream.id, code::CANCEL);
                }
                self.refuse(place, if whole { &Refusal::Late } else { &Refusal::BodyTimeout });
            }
        }
        self.asked = self.streams.iter().filter(|stream| waits(stream)).map(|stream| stream.since).min();
    }

    /// Resets the client's stream and forgets it.
    fn reset_client(&mut self, place: usize, code: u32) {
        let id = self.streams[place].id;
        self.client.reset(id, code);
        self.remember(id);
        self.remove(place);
    }

    fn remember(&mut self, id: u32) {
        if self.forgotten.len() == H2_RESET_STREAMS {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
    }

    fn remove(&mut self, place: usize) {
        let mut stream = self.streams.remove(place);
        stream.up.forget(&mut self.client);
        if stream.at != At::Ours {
            stream.down.forget(&mut self.server);
        }
        self.proxy.finish_stream(&mut stream);
        self.idle = self.now;
    }

    /// Asks the client to go, and lets what is open end.
    fn leave(&mut self) {
        if self.leaving.is_none() {
            frame::write_go_away(&mut self.client.out, MAX_WINDOW, code::NO_ERROR);
            frame::write_ping(&mut self.client.out, false, LAST_CALL);
            self.leaving = Some(Leaving { since: self.now, heard: false });
        }
    }

    fn echoed(&mut self, end: End, data: [u8; 8]) {
        if let Some(leaving) = &mut self.leaving
            && end == End::Client
            && data == LAST_CALL
            && !leaving.heard
        {
            leaving.heard = true;
            frame::write_go_away(&mut self.client.out, self.last, code::NO_ERROR);
        }
    }

    /// Whether all has been said that was to be.
    fn is_done(&self) -> bool {
        let left = self.leaving.as_ref().is_some_and(|leaving| leaving.heard) && self.streams.is_empty();
        (self.over || left) && (self.client_gone || self.client.waiting() == 0)
    }

    /// When something is too late.
    fn deadline(&self) -> Instant {
        let assembly = |side: &Side| side.assembly.as_ref().map(|assembly| assembly.since + HEAD_TIMEOUT);
        let greeting = match self.link {
            Link::Greeting(since) => Some(since + H2_HANDSHAKE_TIMEOUT),
            _ => None,
        };
        let silent = match &self.leaving {
            Some(leaving) => Some(leaving.since.max(self.idle) + H2_LAST_CALL),
            None => Some(self.idle + IDLE_TIMEOUT),
        };
        let stalled = |side: &Side| side.stalled.map(|since| since + H2_STALL_TIMEOUT);
        let all = [
            stalled(&self.client),
            stalled(&self.server),
            self.blocked.map(|since| since + H2_WINDOW_TIMEOUT),
            self.asked.map(|since| since + REQUEST_TIMEOUT),
            (!self.client.heard).then(|| self.started + H2_HANDSHAKE_TIMEOUT),
            greeting,
            assembly(&self.client),
            assembly(&self.server),
            silent.filter(|_| self.streams.is_empty()),
        ];
        all.into_iter().flatten().min().unwrap_or(self.now + IDLE_TIMEOUT)
    }

    /// Time has passed.
    fn tick(&mut self, now: Instant) {
        self.now = now;
        let late = |since: Instant, most: Duration| now >= since + most;
        let slow = |side: &Side| side.assembly.as_ref().is_some_and(|a| late(a.since, HEAD_TIMEOUT));
        if !self.client.heard && late(self.started, H2_HANDSHAKE_TIMEOUT) {
            self.over = true;
        }
        let stalled = |side: &Side| side.stalled.is_some_and(|since| late(since, H2_STALL_TIMEOUT));
        if stalled(&self.client) || stalled(&self.server) {
            self.client_gone = true;
            return self.client_left();
        }
        if slow(&self.client) {
            self.client_broke(code::ENHANCE_YOUR_CALM);
        }
        if slow(&self.server)
            || matches!(self.link, Link::Greeting(since) if late(since, H2_HANDSHAKE_TIMEOUT))
        {
            self.server_late();
        }
        if self.blocked.is_some_and(|since| late(since, H2_WINDOW_TIMEOUT)) {
            self.cut_blocked();
        }
        if self.asked.is_some_and(|since| late(since, REQUEST_TIMEOUT)) {
            self.cut_unanswered();
        }
        if self.streams.is_empty() {
            match &self.leaving {
                Some(leaving) if late(leaving.since.max(self.idle), H2_LAST_CALL) && !self.over => {
                    // Without this word a stream that crosses the closing is lost: nobody could send it again.
                    frame::write_go_away(&mut self.client.out, self.last, code::NO_ERROR);
                    self.over = true;
                }
                None if late(self.idle, IDLE_TIMEOUT) => self.leave(),
                _ => {}
            }
        }
        self.flush();
    }
}
