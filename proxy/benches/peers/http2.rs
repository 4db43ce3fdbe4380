//! HTTP/2 by hand: frames written and found, no more of it than a load needs, so that the load costs next to nothing.
//!
//! Header blocks put their fields into the receiver's table once and refer to them from then on, as clients do; `:path`
//! of a GET stays a literal, as curl and nghttp2 have it, and of a gRPC call is in the table, as grpc-go has it.

use crate::client::Shared;
use anyhow::{Result, bail, ensure};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame's head, in bytes.
pub(crate) const HEAD: usize = 9;
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// What both ends grant on a connection: it is not used up in any run.
const WINDOW: u32 = (1 << 31) - 1 - 65_535;

/// A frame's head.
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

/// The frame that these bytes begin with, once it is whole.
pub(crate) fn next(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEAD>()?;
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    let payload = bytes.get(HEAD..HEAD + length)?;
    Some((Head { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) }, payload))
}

/// Appends a frame.
pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The number that a payload begins with.
pub(crate) fn number(payload: &[u8]) -> i64 {
    payload.first_chunk().map_or(0, |four| i64::from(u32::from_be_bytes(*four)))
}

/// Appends what each end begins with.
pub(crate) fn greet(out: &mut Vec<u8>) {
    // No push, and a MiB for each stream.
    frame(out, SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 0, 0, 4, 0, 16, 0, 0]);
    frame(out, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
}

/// Appends a string of less than 127 bytes.
fn string(block: &mut Vec<u8>, text: &[u8]) {
    block.push(u8::try_from(text.len()).unwrap_or(0));
    block.extend_from_slice(text);
}

/// What a sender has put into the receiver's table.
#[derive(Default)]
pub(crate) struct Fields {
    there: Vec<(&'static [u8], &'static [u8])>,
    /// The receiver has no table (nginx as a client says so).
    none: bool,
    /// It has not been told yet that we know.
    untold: bool,
}

impl Fields {
    /// Takes what the receiver says of itself before anything was sent.
    pub(crate) fn settings(&mut self, payload: &[u8]) {
        let none = payload.as_chunks::<6>().0.iter().any(|setting| setting[..] == [0, 1, 0, 0, 0, 0]);
        self.untold = none && !self.none;
        self.none = none;
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, block: &mut Vec<u8>) {
        if std::mem::take(&mut self.untold) {
            block.push(0x20);
        }
    }

    /// Appends a field: in full, and into the table, the first time; by its number after that.
    pub(crate) fn write(&mut self, block: &mut Vec<u8>, name: &'static [u8], value: &'static [u8]) {
        if let Some(place) = self.there.iter().position(|field| *field == (name, value)) {
            // After the static table's 61, the newest first; there are never so many that it takes a second byte.
            block.push(0x80 | u8::try_from(61 + self.there.len() - place).unwrap_or(0));
            return;
        }
        if self.none {
            block.push(0);
        } else {
            self.there.push((name, value));
            block.push(0x40);
        }
        string(block, name);
        string(block, value);
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Get,
    Grpc,
    /// What the policy does not allow.
    Delete,
    Elsewhere,
}

/// One connection, as the client has it.
pub(crate) struct Connection {
    stream: TcpStream,
    request: Request,
    input: Vec<u8>,
    out: Vec<u8>,
    fields: Fields,
    newest: u32,
    /// When each stream was to begin, by its number.
    began: Vec<Option<Instant>>,
    open: usize,
    room: i64,
    /// Requests that wait for room, or for others to end.
    waiting: Vec<Instant>,
    refused: u64,
}

/// Open streams of one connection: everybody takes as many (RFC 9113 §6.5.2 recommends 100).
const MOST: usize = 100;
/// As many streams as may be open at once, and twice that many behind.
const REMEMBERED: usize = 4096;
/// One gRPC message: its five bytes before it, and a string.
const MESSAGE: &[u8] = b"\0\0\0\0\x07\x0a\x05hello";

impl Connection {
    pub(crate) fn new(stream: TcpStream, request: Request) -> Self {
        let mut out = PREFACE.to_vec();
        greet(&mut out);
        Self {
            stream,
            request,
            input: Vec::with_capacity(64 * 1024),
            out,
            fields: Fields::default(),
            newest: 0,
            began: vec![None; REMEMBERED],
            open: 0,
            room: 65_535,
            waiting: Vec::new(),
            refused: 0,
        }
    }

    fn ask(&mut self, began: Instant) -> Result<()> {
        let grpc = self.request == Request::Grpc;
        if self.open >= MOST || (grpc && self.room < MESSAGE.len() as i64) {
            self.waiting.push(began);
            return Ok(());
        }
        self.newest = if self.newest == 0 { 1 } else { self.newest + 2 };
        let place = self.newest as usize / 2 % REMEMBERED;
        ensure!(
            self.began[place].replace(began).is_none(),
            "a stream was not answered in thousands of others"
        );
        self.open += 1;
        let mut block = Vec::with_capacity(64);
        match self.request {
            Request::Get | Request::Elsewhere => block.push(0x82),
            Request::Grpc => block.push(0x83),
            Request::Delete => {
                block.push(0x02);
                string(&mut block, b"DELETE");
            }
        }
        // `:scheme http`.
        block.push(0x86);
        match self.request {
            Request::Grpc => self.fields.write(&mut block, b":path", b"/api/v1/items"),
            Request::Elsewhere => {
                block.push(0x04);
                string(&mut block, b"/private/item");
            }
            Request::Get | Request::Delete => {
                block.push(0x04);
                string(&mut block, format!("/public/items/{}", self.newest % 10_000).as_bytes());
            }
        }
        self.fields.write(&mut block, b":authority", b"shop.example:8080");
        self.fields.write(&mut block, b"user-agent", b"bench/1.0");
        if grpc {
            self.fields.write(&mut block, b"content-type", b"application/grpc");
            self.fields.write(&mut block, b"te", b"trailers");
            frame(&mut self.out, HEADERS, END_HEADERS, self.newest, &block);
            frame(&mut self.out, DATA, END_STREAM, self.newest, MESSAGE);
            self.room -= MESSAGE.len() as i64;
        } else {
            frame(&mut self.out, HEADERS, END_HEADERS | END_STREAM, self.newest, &block);
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Takes what has come; says of each stream that ended when it was to begin.
    fn take(&mut self, mut ended: impl FnMut(Instant)) -> Result<usize> {
        let (mut at, mut count) = (0, 0);
        let input = std::mem::take(&mut self.input);
        while let Some((head, payload)) = next(&input[at..]) {
            at += HEAD + payload.len();
            let end = head.flags & END_STREAM != 0;
            match head.kind {
                HEADERS => {
                    let block = payload.trim_prefix_updates();
                    let trailers = end && self.request == Request::Grpc;
                    if !trailers && block.first() != Some(&0x88) {
                        self.refused += 1;
                    }
                }
                RST_STREAM | GOAWAY => bail!("the proxy ended a stream, or all: {payload:?}"),
                SETTINGS if !end => frame(&mut self.out, SETTINGS, ACK, 0, &[]),
                PING if !end => frame(&mut self.out, PING, ACK, 0, payload),
                WINDOW_UPDATE if head.stream == 0 => self.room += number(payload),
                _ => {}
            }
            if end && matches!(head.kind, HEADERS | DATA) {
                let place = head.stream as usize / 2 % REMEMBERED;
                let Some(began) = self.began[place].take() else { bail!("an answer that nobody asked for") };
                self.open -= 1;
                count += 1;
                ended(began);
            }
        }
        self.input = input;
        self.input.drain(..at);
        Ok(count)
    }

    async fn read(&mut self) -> Result<()> {
        ensure!(self.stream.read_buf(&mut self.input).await? > 0, "the connection ended");
        Ok(())
    }

    /// Asks once; whether it was let through. The connection stays open.
    pub(crate) async fn once(mut self) -> Result<(bool, TcpStream)> {
        self.ask(Instant::now())?;
        self.write().await?;
        while self.open > 0 {
            self.read().await?;
            self.take(drop)?;
            self.write().await?;
        }
        Ok((self.refused == 0, self.stream))
    }

    /// Asks as fast as answers come, on so many streams.
    pub(crate) async fn load(mut self, shared: Rc<Shared>, streams: usize) -> Result<()> {
        let now = Instant::now();
        (0..streams).try_for_each(|_| self.ask(now))?;
        self.write().await?;
        while self.open > 0 || !self.waiting.is_empty() {
            self.read().await?;
            let now = Instant::now();
            let count = self.take(|began| shared.done(now - began))?;
            let held = std::mem::take(&mut self.waiting);
            held.into_iter().try_for_each(|began| self.ask(began))?;
            if !shared.stop.get() {
                (0..count).try_for_each(|_| self.ask(now))?;
            }
            self.write().await?;
        }
        ensure!(self.refused == 0, "{} requests were refused", self.refused);
        Ok(())
    }

    /// Asks at set times, whatever the answers do.
    pub(crate) async fn paced(mut self, shared: Rc<Shared>, first: Duration, every: Duration) -> Result<()> {
        self.write().await?;
        let mut clock = crate::client::Clock::new(first, every)?;
        while self.open > 0 || !shared.stop.get() {
            tokio::select! {
                read = self.stream.read_buf(&mut self.input) => {
                    ensure!(read? > 0, "the connection ended");
                    let now = Instant::now();
                    self.take(|began| shared.done(now - began))?;
                    let held = std::mem::take(&mut self.waiting);
                    held.into_iter().try_for_each(|began| self.ask(began))?;
                }
                due = clock.due() => {
                    for began in due? {
                        if !shared.stop.get() {
                            self.ask(began)?;
                        }
                    }
                }
            }
            self.write().await?;
        }
        ensure!(self.refused == 0, "{} requests were refused", self.refused);
        Ok(())
    }
}

/// Blocks may begin with a new size of the table.
trait TrimUpdates {
    fn trim_prefix_updates(&self) -> &[u8];
}

impl TrimUpdates for [u8] {
    fn trim_prefix_updates(&self) -> &[u8] {
        let mut rest = self;
        while let [first, after @ ..] = rest
            && first & 0xe0 == 0x20
        {
            // A number that has its prefix full goes on while the first bit is set.
            let more = if first & 0x1f == 0x1f {
                after.iter().position(|byte| byte & 0x80 == 0).map_or(after.len(), |last| last + 1)
            } else {
                0
            };
            rest = &after[more..];
        }
        rest
    }
}

/// Connects from the client's namespace, where this thread is.
pub(crate) async fn connect(to: SocketAddr, request: Request) -> Result<Connection> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(Connection::new(stream, request))
}
