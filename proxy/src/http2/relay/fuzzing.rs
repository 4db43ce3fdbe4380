//! The relay between two strangers: whatever they say, in whatever pieces, what goes on is sound and was allowed.

use super::message;
use super::stream::At;
use super::{End, Link, Relay};
use crate::answer::Refusal;
use crate::fuzzing::{CLIENT, PREFIX, SERVER, proxy, snapshot};
use crate::http2::frame::{Frame, HEAD_BYTES, Head, PREFACE, flag, kind, write_settings};
use crate::http2::hpack::Decoder;
use crate::judge::Leg;
use crate::limits::{H2_CONNECTION_WINDOW, H2_OUT_BYTES};
use crate::service::route::Client;
use crate::share::Streams;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Steps of one run.
const STEPS: usize = 256;
/// What one step may read: what the sockets read at once.
const READ_BYTES: usize = 64 * 1024;

/// What one end has been told, read as strictly as we read others.
#[derive(Default)]
struct Told {
    bytes: Vec<u8>,
    decoder: Decoder,
    block: Option<(Head, Vec<u8>)>,
    /// The newest stream.
    last: u32,
}

impl Told {
    /// Takes what is written to the server: each request must be one that policy lets through.
    fn server(&mut self, bytes: &[u8]) {
        self.frames(bytes, &mut |told, head, lines| {
            if head.stream > told.last {
                told.last = head.stream;
                assert!(!head.stream.is_multiple_of(2), "a client's number");
                let asked = message::request(lines, head.has(flag::END_STREAM), true).expect("a request");
                let (path, method) = (asked.said.path.as_str(), asked.said.method.as_str());
                let below =
                    path.strip_prefix(PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                let allowed = match &asked.said.protocol {
                    Some(protocol) => method == "CONNECT" && protocol.eq_ignore_ascii_case("websocket"),
                    None => ["GET", "POST"].contains(&method),
                };
                assert!(below && allowed, "{method} {path} was not allowed");
                assert!(asked.odd.is_none(), "{:?}", asked.odd);
            } else {
                message::trailers(lines).expect("trailers");
            }
        });
    }

    /// Takes what is written to the client.
    fn client(&mut self, bytes: &[u8]) {
        self.frames(bytes, &mut |_, head, lines| {
            let end = head.has(flag::END_STREAM);
            let sound = message::answer(lines, end, true).is_ok() || message::trailers(lines).is_ok();
            assert!(sound, "neither an answer nor trailers: {lines:?}");
        });
    }

    fn frames(&mut self, bytes: &[u8], each: &mut dyn FnMut(&mut Self, &Head, &[crate::http2::hpack::Line])) {
        self.bytes.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(head) = Head::read(&self.bytes[at..]).expect("a frame's size") {
            let Some(payload) = self.bytes.get(at + HEAD_BYTES..at + HEAD_BYTES + head.length) else { break };
            let payload = payload.to_vec();
            at += HEAD_BYTES + head.length;
            let frame = Frame::read(&head, &payload).unwrap_or_else(|bad| panic!("{bad:?}: {head:?}"));
            assert!(self.block.is_none() || head.kind == kind::CONTINUATION, "a block was interrupted");
            let (first, mut block) = match frame {
                Frame::Headers(range) => (head, payload[range].to_vec()),
                Frame::Continuation => {
                    let (first, mut block) = self.block.take().expect("a block to go on with");
                    block.extend_from_slice(&payload);
                    (first, block)
                }
                _ => continue,
            };
            if !head.has(flag::END_HEADERS) {
                self.block = Some((first, std::mem::take(&mut block)));
                continue;
            }
            let read =
                self.decoder.decode(&block, 1 << 20).unwrap_or_else(|error| panic!("{error:?}: {first:?}"));
            each(self, &first, &read.lines);
        }
        self.bytes.drain(..at);
    }
}

/// A relay with its two strangers.
struct Stage {
    relay: Relay,
    client: Told,
    server: Told,
    now: Instant,
    dials: u32,
}

impl Stage {
    fn feed(&mut self, end: End, bytes: &[u8]) {
        let there = end == End::Client || matches!(self.relay.link, Link::Greeting(_) | Link::Open);
        if there && self.relay.wants(end) {
            self.relay.feed(end, bytes, self.now);
        }
        if self.relay.link == Link::Dialling {
            self.server = Told::default();
            self.dials += 1;
            // Every other server is there only at the second attempt.
            if self.dials.is_multiple_of(2) {
                self.relay.unreachable(&Refusal::NoPort);
            } else {
                self.relay.connected(self.now);
            }
        }
    }

    /// Writes what waits for an end.
    fn write(&mut self, end: End) {
        let side = self.relay.side(end);
        let out = std::mem::take(&mut side.out);
        let from = std::mem::take(&mut side.written);
        match end {
            End::Client => self.client.client(&out[from..]),
            End::Server if matches!(self.relay.link, Link::Greeting(_) | Link::Open) => {
                // Once, at the front of a connection.
                let bytes = out[from..].strip_prefix(PREFACE).unwrap_or(&out[from..]);
                self.server.server(bytes);
            }
            End::Server => {}
        }
        self.relay.flush();
    }

    fn check(&self) {
        let relay = &self.relay;
        let of = |ours: bool, length: usize| if ours { 0 } else { length };
        let up: usize = relay.streams.iter().map(|s| of(s.at == At::Ours, s.up.waiting())).sum();
        let down: usize = relay.streams.iter().map(|s| of(s.at == At::Ours, s.down.waiting())).sum();
        if !relay.over {
            assert_eq!((relay.client.kept, relay.server.kept), (up, down), "what is kept is counted");
        }
        let most = H2_OUT_BYTES + 8 * READ_BYTES;
        assert!(relay.client.out.len() < most, "{} wait for the client", relay.client.out.len());
        assert!(relay.server.out.len() < most, "{} wait for the server", relay.server.out.len());
        assert!(up + down <= 2 * H2_CONNECTION_WINDOW as usize, "{up} {down}");
        assert!(
            relay.client.granted >= 0 && relay.server.granted >= 0 || relay.over,
            "no window is overdrawn"
        );
    }
}

/// Steps: what to do, a length of two bytes, and so many bytes.
///
/// # Panics
/// If what goes on is not sound, or was not allowed.
pub fn relay(bytes: &[u8]) {
    let (proxy, mut records) = proxy();
    let leg = Leg { source: SocketAddr::new(CLIENT, 1000), destination: SocketAddr::new(SERVER, 80) };
    let now = Instant::now();
    let relay = Relay::new(proxy.clone(), Client { leg, service: false }, Streams::default(), now);
    let mut stage = Stage { relay, client: Told::default(), server: Told::default(), now, dials: 0 };
    let mut opening = PREFACE.to_vec();
    write_settings(&mut opening, &[]);
    stage.feed(End::Client, &opening);
    let mut rest = bytes;
    for _ in 0..STEPS {
        let Some(([what, high, low], after)) = rest.split_first_chunk::<3>() else { break };
        let length = usize::from(*high) << 8 | usize::from(*low);
        let (piece, after) = after.split_at(length.min(after.len()).min(READ_BYTES));
        match what % 8 {
            0..=2 => stage.feed(End::Client, piece),
            3 | 4 => stage.feed(End::Server, piece),
            5 => {
                stage.write(End::Server);
                stage.write(End::Client);
            }
            6 => {
                stage.now += Duration::from_millis(length as u64 * 10);
                stage.relay.tick(stage.now);
            }
            _ => {
                // What was on its way was allowed when it went.
                stage.write(End::Server);
                proxy.state.swap(snapshot(length % 2 == 0));
                stage.relay.revoke();
            }
        }
        rest = if what % 8 < 5 { after } else { &rest[3..] };
        stage.check();
        while records.try_recv().is_ok() {}
        if stage.relay.over {
            break;
        }
    }
    stage.write(End::Server);
    stage.write(End::Client);
    stage.relay.client_left();
    assert_eq!(proxy.state.open_flows(), 0, "no flow outlives its connection");
}
