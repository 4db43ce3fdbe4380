//! The sockets and the clock of the relay: reads into a buffer that every connection of a thread shares, so that an
//! idle connection holds none; writes what waits.
//!
//! Knows nothing of frames. Called by [`http2::serve`](crate::http2::serve).

use super::{End, Link, Relay};
use crate::http1::linger;
use crate::limits::H2_TURNS;
use crate::proxy::{Accepted, Proxy};
use crate::service::route::Target;
use crate::share::Charge;
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// What is read at once: four of the largest frames.
const READ_BYTES: usize = 64 * 1024;

/// What an output buffer may keep of its memory while nothing waits in it.
const KEPT_BYTES: usize = 4 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What the connection needs next.
enum Turn {
    Dial,
    Over,
}

struct Io {
    relay: Relay,
    charge: Charge,
    client: TcpStream,
    server: Option<TcpStream>,
    sleep: Pin<Box<Sleep>>,
}

/// Serves a connection to its end.
pub(in crate::http2) async fn serve(proxy: Arc<Proxy>, accepted: Accepted) {
    let Accepted { client: who, stream, buf, charge, .. } = accepted;
    let mut relay = Relay::new(proxy.clone(), who, charge.streams(), Instant::now());
    relay.feed(End::Client, &buf, Instant::now());
    drop(buf);
    let sleep = Box::pin(tokio::time::sleep_until(relay.deadline()));
    let mut io = Io { relay, charge, client: stream, server: None, sleep };
    let mut draining = Box::pin(async move { proxy.draining().await });
    loop {
        let turn = poll_fn(|cx| io.turn(draining.as_mut(), cx)).await;
        match turn {
            Turn::Dial => io.dial().await,
            Turn::Over => break,
        }
    }
    let Io { mut relay, client, server, .. } = io;
    // First: what is open at the server ends at once.
    drop(server);
    let left = relay.client_gone;
    relay.client_left();
    drop(relay);
    if !left {
        linger(client).await;
    }
}

impl Io {
    async fn dial(&mut self) {
        let target = Target::direct(self.relay.who.leg);
        let proxy = self.relay.proxy.clone();
        let mut dialling = Box::pin(async move { proxy.dial(&target).await });
        let dialled = poll_fn(|cx| {
            if self.relay.wake.take(cx) {
                self.relay.revoke();
            }
            self.write(End::Client, cx);
            dialling.as_mut().poll(cx)
        })
        .await;
        match dialled {
            Ok(stream) => {
                self.server = Some(stream);
                self.relay.connected(Instant::now());
            }
            Err(refusal) => self.relay.unreachable(&refusal),
        }
    }

    fn turn<D: Future<Output = ()>>(
        &mut self,
        mut draining: Pin<&mut D>,
        cx: &mut Context<'_>,
    ) -> Poll<Turn> {
        for _ in 0..H2_TURNS {
            if self.relay.wake.take(cx) {
                self.relay.revoke();
            }
            let mut moved = self.read(End::Client, cx);
            moved |= self.read(End::Server, cx);
            moved |= self.write(End::Server, cx);
            moved |= self.write(End::Client, cx);
            self.relay.crowded = !self.charge.set(self.relay.held());
            let open = self.relay.streams.len();
            self.relay.places.set(open);
            if self.relay.is_done() {
                return Poll::Ready(Turn::Over);
            }
            if self.relay.link == Link::Dialling {
                return Poll::Ready(Turn::Dial);
            }
            if moved {
                continue;
            }
            if self.relay.leaving.is_none() && draining.as_mut().poll(cx).is_ready() {
                self.relay.leave();
                continue;
            }
            ready!(self.late(cx));
        }
        // The others of this thread have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when something has become too late.
    fn late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.relay.deadline();
            // Put off only when it comes: most deadlines move on before they are met.
            if self.sleep.deadline() > deadline {
                self.sleep.as_mut().reset(deadline);
            }
            ready!(self.sleep.as_mut().poll(cx));
            if self.relay.deadline() <= Instant::now() {
                self.relay.tick(Instant::now());
                let next = self.relay.deadline();
                self.sleep.as_mut().reset(next.max(Instant::now() + std::time::Duration::from_millis(1)));
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline);
        }
    }

    /// Reads once; whether anything came of it.
    fn read(&mut self, end: End, cx: &mut Context<'_>) -> bool {
        if !self.relay.wants(end) {
            return false;
        }
        let stream = match (end, &mut self.server) {
            (End::Client, _) => &mut self.client,
            (End::Server, Some(server)) => server,
            (End::Server, None) => return false,
        };
        let relay = &mut self.relay;
        let ended = SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    relay.feed(end, buf.filled(), Instant::now());
                    Some(false)
                }
                Poll::Ready(_) => Some(true),
                Poll::Pending => None,
            }
        });
        if ended == Some(true) {
            self.ended(end);
        }
        if !matches!(self.relay.link, Link::Greeting(_) | Link::Open) && self.relay.server.waiting() == 0 {
            self.server = None;
        }
        ended.is_some()
    }

    fn ended(&mut self, end: End) {
        match end {
            End::Client => {
                self.relay.client_gone = true;
                self.relay.client.out = Vec::new();
                self.relay.client.written = 0;
                self.relay.client_left();
            }
            End::Server => {
                self.server = None;
                self.relay.server.out = Vec::new();
                self.relay.server.written = 0;
                self.relay.server_closed(&crate::answer::Refusal::BadAnswer("no HTTP/2"));
                self.relay.resume();
            }
        }
    }

    /// Writes what waits as far as it goes; whether anything did.
    fn write(&mut self, end: End, cx: &mut Context<'_>) -> bool {
        let stream = match (end, &mut self.server) {
            (End::Client, _) => &mut self.client,
            (End::Server, Some(server)) => server,
            (End::Server, None) => return false,
        };
        let side = self.relay.side(end);
        let (full, mut moved) = (side.is_full(), false);
        while side.waiting() > 0 {
            match Pin::new(&mut *stream).poll_write(cx, &side.out[side.written..]) {
                Poll::Ready(Ok(length @ 1..)) => {
                    side.written += length;
                    side.stalled = None;
                    moved = true;
                }
                Poll::Ready(_) => {
                    self.ended(end);
                    return true;
                }
                Poll::Pending => {
                    side.stalled.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
        if side.waiting() == 0 {
            side.written = 0;
            side.out.clear();
            if side.out.capacity() > KEPT_BYTES {
                side.out = Vec::new();
            }
        }
        if moved && full {
            // What had no room.
            self.relay.flush();
        }
        moved
    }
}

#[cfg(test)]
#[path = "io_tests.rs"]
mod tests;
