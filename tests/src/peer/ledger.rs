//! What reached a server: connections, raw bytes and requests, by port.
//!
//! Bytes are counted as they leave the socket, before any parser: a refused request must show as nothing at
//! all. Loopback is left out, so that the ledger can be read over HTTP from within. Called by the servers.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What reached one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStats {
    /// Connections accepted; for UDP, datagrams.
    pub connections: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Requests that a parser made of them.
    pub requests: u64,
}

/// What reached a server, by port.
pub type Stats = BTreeMap<u16, PortStats>;

/// The record of one server process.
#[derive(Debug, Default)]
pub struct Ledger {
    stats: Mutex<Stats>,
    requests: AtomicU64,
    connections: AtomicU64,
    silent: bool,
}

impl Ledger {
    /// One that counts and says nothing of each: for servers under load.
    #[must_use]
    pub fn silent() -> Self {
        Self { silent: true, ..Self::default() }
    }

    /// Writes one line of JSON to standard output, unless it is a silent one.
    pub fn say(&self, value: &Value) {
        if !self.silent {
            say(value);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What reached the server so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.lock().clone()
    }

    /// A connection was accepted; returns its number.
    pub fn connection(&self, port: u16, peer: SocketAddr) -> u64 {
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if !is_loopback(peer) {
            self.lock().entry(port).or_default().connections += 1;
            self.say(
                &json!({"event": "connection", "port": port, "peer": canonical(peer), "connection": number}),
            );
        }
        number
    }

    /// Bytes were read.
    pub fn bytes(&self, port: u16, peer: SocketAddr, count: usize) {
        if count > 0 && !is_loopback(peer) {
            self.lock().entry(port).or_default().bytes += count as u64;
        }
    }

    /// A request was parsed; returns its number.
    pub fn request(&self, port: u16, peer: SocketAddr, what: &Value) -> u64 {
        if is_loopback(peer) {
            return self.requests.load(Ordering::Relaxed);
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().entry(port).or_default().requests += 1;
        let peer = canonical(peer);
        self.say(&json!({"event": "request", "count": number, "port": port, "peer": peer, "request": what}));
        number
    }
}

/// The peer's address; a v4-mapped one as IPv4.
#[must_use]
pub fn canonical(peer: SocketAddr) -> String {
    peer.ip().to_canonical().to_string()
}

/// Whether the peer is this very machine, over loopback.
#[must_use]
pub fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// Writes one line of JSON to standard output.
#[allow(clippy::print_stdout, reason = "the peers speak by standard output")]
pub fn say(value: &Value) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // A closed pipe is the reader's business; the server goes on.
    let _ = writeln!(out, "{value}");
    let _ = out.flush();
}

/// A stream that enters what is read from it into the ledger.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    ledger: Arc<Ledger>,
    port: u16,
    peer: SocketAddr,
}

impl<S> Counted<S> {
    /// Counts what is read from the stream.
    pub const fn new(stream: S, ledger: Arc<Ledger>, port: u16, peer: SocketAddr) -> Self {
        Self { stream, ledger, port, peer }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.ledger.bytes(self.port, self.peer, buf.filled().len() - before);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
