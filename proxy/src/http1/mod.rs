//! HTTP/1: one connection, request by request, each judged before a byte of it goes on.
//!
//! One connection to the server per connection of the client, dialled at the first allow and gone with it; to a Service
//! one for each backend that a request could not go without ([`upstreams`]). Nothing is shared between clients. Heads and bodies go on as they came; see [`head`] for what is refused and why the
//! framing is done here, where both headers of a smuggled request can be seen. Called by [`Proxy`].

pub mod body;
mod exchange;
pub mod head;
mod patience;
mod upstreams;

use crate::answer::{Denial, Refusal};
use crate::draft::{Draft, Ends};
use crate::judge::{self, Judged, Leg};
use crate::limits::{DISCARD_BYTES, HEAD_TIMEOUT, IDLE_TIMEOUT, LINGER};
use crate::proxy::{Accepted, Proxy, reset};
use crate::service::route::{Route, Target, Wish};
use crate::stall::Deadline;
use crate::state::{OpenFlow, Said, View, Wake};
use crate::telemetry::context::Context;
use crate::tunnel;
use body::{poll_read, read_more};
use bytes::{Buf as _, BytesMut};
use exchange::{After, Exchange};
use head::{Bad, Changes, Framing, RequestHead, Upgrade};
use patience::Patience;
use sluice_policy::{Decision, Reason, Verdict};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
pub(crate) use upstreams::Upstream;
use upstreams::Upstreams;

struct Connection {
    proxy: Arc<Proxy>,
    client: Accepted,
    upstreams: Upstreams,
    /// Of whichever request is open.
    wake: Arc<Wake>,
    deadline: Deadline,
    patience: Patience,
    ends: Ends,
}

/// What came of waiting for a request.
enum Next {
    Request(Box<RequestHead>),
    Bad(Bad),
    Slow,
    /// Its endpoint holds too much already.
    Crowded,
    Over,
}

/// What came while a request was waited for.
enum Came {
    Read(io::Result<usize>),
    Late,
    /// The server has closed, or the proxy drains.
    Left,
}

/// How the connection goes on.
enum Step {
    Again,
    Close,
    Abort,
    Tunnel,
}

/// Serves the connection to its end.
pub async fn serve(proxy: Arc<Proxy>, client: Accepted) {
    let mut connection = Connection {
        proxy,
        client,
        upstreams: Upstreams::default(),
        wake: Arc::default(),
        deadline: Deadline::default(),
        patience: Patience::default(),
        ends: Ends::default(),
    };
    loop {
        let step = match connection.next_request().await {
            // Boxed: nothing of it is held while the connection is idle.
            Next::Request(head) => Box::pin(connection.request(&head)).await,
            Next::Bad(bad) => connection.unreadable(bad).await,
            Next::Slow => connection.refuse_unread(Refusal::HeadTimeout).await,
            Next::Crowded => connection.refuse_unread(Refusal::Crowded).await,
            Next::Over => Step::Close,
        };
        match step {
            Step::Again => body::let_go(&mut connection.client.buf),
            Step::Close => return linger(connection.client.stream).await,
            Step::Abort => return reset(&connection.client.stream),
            Step::Tunnel => {
                let Connection { proxy, client, upstreams, .. } = connection;
                let servers = upstreams.into_servers();
                return Box::pin(tunnel::serve(&proxy, client, Said::Raw, servers)).await;
            }
        }
    }
}

impl Connection {
    /// Waits for a whole head. It stays in the buffer: a flow that fails open takes it along.
    async fn next_request(&mut self) -> Next {
        let mut looked = 0;
        let mut began = (!self.client.buf.is_empty()).then(Instant::now);
        loop {
            match head::find_end(&self.client.buf, looked) {
                Ok(Some(end)) => {
                    return match RequestHead::parse(&self.client.buf[..end]) {
                        Ok(head) => {
                            if !matters_raw(&head) {
                                self.client.buf.advance(end);
                            }
                            self.client.charge.set(self.client.buf.len());
                            Next::Request(Box::new(head))
                        }
                        Err(bad) => Next::Bad(bad),
                    };
                }
                Ok(None) => looked = self.client.buf.len(),
                Err(bad) => return Next::Bad(bad),
            }
            let deadline = began.map_or_else(|| Instant::now() + IDLE_TIMEOUT, |at| at + HEAD_TIMEOUT);
            let idle = began.is_none();
            let read = match self.wait(deadline, idle).await {
                Came::Read(read) => read,
                Came::Late => return if idle { Next::Over } else { Next::Slow },
                Came::Left => return Next::Over,
            };
            match read {
                Ok(0) | Err(_) => return Next::Over,
                Ok(_) if !self.client.charge.set(self.client.buf.len()) => return Next::Crowded,
                Ok(_) => began = began.or_else(|| Some(Instant::now())),
            }
        }
    }

    /// Waits for bytes of the client. While it is idle its buffers have no memory to speak of.
    async fn wait(&mut self, deadline: Instant, idle: bool) -> Came {
        let Self { proxy, client, upstreams, patience, .. } = self;
        poll_fn(|cx| {
            // First: a request that has come is served, whatever else has happened.
            if let Poll::Ready(read) = poll_read(&mut client.stream, &mut client.buf, cx) {
                return Poll::Ready(Came::Read(read));
            }
            if patience.poll_late(deadline, cx).is_ready() {
                return Poll::Ready(Came::Late);
            }
            // The server closed: the client hears it now, as it would without us, and not at its next request.
            if idle && (upstreams.poll_left(cx).is_ready() || patience.poll_drained(proxy, cx).is_ready()) {
                return Poll::Ready(Came::Left);
            }
            Poll::Pending
        })
        .await
    }

    /// Whether bytes that nobody reads may pass to this server: then nothing needs to be readable.
    fn fails_open(&self, leg: &Leg) -> bool {
        judge::unknown(&self.proxy.state.view(), leg).decision() == Decision::Allow
    }

    async fn unreadable(&mut self, bad: Bad) -> Step {
        self.refuse_unread(match bad {
            Bad::Malformed(what) => Refusal::Malformed(what),
            Bad::TargetTooLong => Refusal::TargetTooLong,
            Bad::TooLarge => Refusal::HeadTooLarge,
        })
        .await
    }

    /// Answers a request whose head could not be read, and closes; or passes it on raw, where policy lets it.
    async fn refuse_unread(&mut self, refusal: Refusal) -> Step {
        if self.proxy.passes_raw(&self.client.client) {
            return Step::Tunnel;
        }
        let mut record = self.client.client.record(&self.proxy.state.view(), "http/1.1");
        let reason = match refusal {
            Refusal::Malformed(_) => Reason::ParseError,
            _ => Reason::Limit,
        };
        record.judged(&judge::refuse(reason));
        self.answer(refusal, true, false, record).await;
        Step::Close
    }

    /// Judges one request and carries the verdict out.
    async fn request(&mut self, head: &RequestHead) -> Step {
        let said = head.said.clone();
        // Elsewhere there is nothing to be chosen.
        let open = if self.client.client.service { self.upstreams.open() } else { Vec::new() };
        let judge = |view: &View, leg: &Leg| judged(head, &said, view, leg);
        let asked = Said::Request(said.clone());
        let wake = Some(&self.wake);
        let route = self.proxy.route_of(&self.client.client, &asked, Wish::Keep(&open), wake, judge);
        let Route { target, judged, flow, view, load } = route;
        let mut record =
            target.record_of(&mut self.ends, &view, if head.minor == 0 { "http/1.0" } else { "http/1.1" });
        drop(view);
        record.describe(&said);
        let span = self.span(head, &mut record);
        record.judged(&judged.verdict);
        if judged.is_denied() {
            return self.deny(head, &judged.verdict, record).await;
        }
        if matters_raw(head) {
            if self.fails_open(&target.leg) {
                // Only audited policies govern: what it becomes is not ours to read.
                return Step::Tunnel;
            }
            if let Ok(Some(end)) = head::find_end(&self.client.buf, 0) {
                self.client.buf.advance(end);
            }
        }
        let connected = tokio::select! {
            // First: nobody is dialled who may not be reached any more.
            biased;
            verdict = flow.revoked() => {
                record.judged(verdict);
                "revoked".clone_into(&mut record.error);
                Err(Refusal::Denied(Denial::of(verdict)))
            }
            connected = self.upstream(&target) => connected,
        };
        let upstream = match connected {
            Ok(upstream) => upstream,
            Err(refusal) => {
                let close = self.must_close(head);
                self.answer(refusal, close, head.method() == "HEAD", record).await;
                return if close { Step::Close } else { Box::pin(self.discard(head)).await };
            }
        };
        let changes = Changes { path: judged.path, traceparent: span };
        let step = self.exchange(head, &changes, (&flow, &said, target.leg), upstream, record).await;
        drop(load);
        step
    }

    /// The span of the request, if it gets one; returns the `traceparent` that goes on.
    fn span(&self, head: &RequestHead, record: &mut Draft) -> Option<String> {
        let parent = Context::of(head.values("traceparent"));
        let span = self.proxy.sampler.span(parent, &self.proxy.ids)?;
        // Without a valid parent there is no state to go with it (Trace Context §3.3).
        let state: Vec<_> =
            parent.iter().flat_map(|_| head.values("tracestate")).map(String::from_utf8_lossy).collect();
        record.spanned(&span, &state.join(","));
        parent.map(|parent| parent.header(span.context.span_id))
    }

    async fn deny(&mut self, head: &RequestHead, verdict: &Verdict, record: Draft) -> Step {
        let close = self.must_close(head);
        let refusal = Refusal::Denied(Denial::of(verdict));
        self.answer(refusal, close, head.method() == "HEAD", record).await;
        if close { Step::Close } else { Box::pin(self.discard(head)).await }
    }

    /// Whether the connection ends after our own answer: a body that may not come, or too much of it.
    fn must_close(&self, head: &RequestHead) -> bool {
        let body = match head.framing {
            Framing::Empty => false,
            Framing::Length(length) => head.expects || length > DISCARD_BYTES,
            Framing::Chunked | Framing::UntilClose => true,
        };
        head.close || body || matters_raw(head) || self.proxy.is_draining()
    }

    /// Reads a refused request's body and throws it away.
    async fn discard(&mut self, head: &RequestHead) -> Step {
        let Framing::Length(mut left) = head.framing else { return Step::Again };
        let all = async {
            loop {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.client.buf.len());
                self.client.buf.advance(here);
                left -= here as u64;
                if left == 0 {
                    return true;
                }
                if !matches!(read_more(&mut self.client.stream, &mut self.client.buf).await, Ok(1..)) {
                    return false;
                }
            }
        };
        match tokio::time::timeout(HEAD_TIMEOUT, all).await {
            Ok(true) => Step::Again,
            _ => Step::Close,
        }
    }

    /// The connection to a server: the one there is, or a new one.
    async fn upstream(&mut self, target: &Target) -> Result<Upstream, Refusal> {
        let at = target.leg.destination;
        self.upstreams.forget_others(target);
        if let Some(upstream) = self.upstreams.take(at) {
            return Ok(upstream);
        }
        let place = self.upstreams.make_room(&self.proxy, target);
        let dialled = Box::pin(self.proxy.dial(target)).await;
        self.upstreams.dialled(at, dialled.is_ok());
        Ok(Upstream::new(at, dialled?, place))
    }

    async fn exchange(
        &mut self,
        head: &RequestHead,
        changes: &Changes,
        (flow, said, leg): (&OpenFlow, &judge::Said, Leg),
        mut upstream: Upstream,
        mut record: Draft,
    ) -> Step {
        let exchange = Exchange { proxy: &self.proxy, head, changes, flow, said, leg };
        let after = exchange.run(&mut self.client, &mut upstream, &mut record, &mut self.deadline).await;
        let step = match after {
            After::Reusable => {
                upstream.reused = true;
                self.upstreams.put(upstream);
                Step::Again
            }
            After::Close => Step::Close,
            After::Abort => {
                reset(&upstream.stream);
                Step::Abort
            }
            // Only audited policies govern: what the server says is not ours to read either.
            After::Unreadable(_) if !upstream.buf.is_empty() && self.fails_open(&leg) => {
                self.upstreams.put(upstream);
                Step::Tunnel
            }
            After::Unreadable(what) => {
                reset(&upstream.stream);
                self.answer(Refusal::BadAnswer(what), true, head.method() == "HEAD", record).await;
                return Step::Close;
            }
            After::Answer(refusal) => {
                reset(&upstream.stream);
                self.answer(refusal, true, head.method() == "HEAD", record).await;
                return Step::Close;
            }
            After::Revoked(refusal) => {
                reset(&upstream.stream);
                let close = self.proxy.is_draining();
                self.answer(refusal, close, head.method() == "HEAD", record).await;
                return if close { Step::Close } else { Step::Again };
            }
        };
        self.proxy.records.finish(record);
        step
    }

    async fn answer(&mut self, refusal: Refusal, close: bool, to_head: bool, mut record: Draft) {
        let bytes = refusal.http1(close, to_head, record.tells());
        record.status = u32::from(refusal.status().as_u16());
        if record.error.is_empty() {
            refusal.error().clone_into(&mut record.error);
        }
        // A client that does not take its answer is gone: the next read says so. But it may not hold us up.
        let _ = tokio::time::timeout(HEAD_TIMEOUT, self.client.stream.write_all(&bytes)).await;
        self.proxy.records.finish(record);
    }
}

/// Whether the request asks for a connection that is not HTTP/1 any more.
fn matters_raw(head: &RequestHead) -> bool {
    matches!(head.upgrade, Upgrade::WebSocket | Upgrade::Other) || head.method() == "CONNECT"
}

/// A WebSocket and CONNECT are judged like any request, and need a rule that names them. What any other upgrade
/// becomes is refused, but where raw bytes may pass anyway. A body would be in the way of a tunnel.
fn judged(head: &RequestHead, said: &judge::Said, view: &View, leg: &Leg) -> Judged {
    let judged = said.judge(view, leg);
    let odd = head.upgrade == Upgrade::Other
        || (head.method() == "CONNECT" && (head.framing != Framing::Empty || head.minor == 0));
    if !odd || judged.is_denied() || judge::unknown(view, leg).decision() == Decision::Allow {
        return judged;
    }
    Judged::of(judge::refuse(Reason::NoRuleMatched))
}

/// Closes our half and lets the client read the last answer before the socket goes: a close with unread bytes would
/// be a reset, which takes the answer away.
pub(crate) async fn linger(mut stream: TcpStream) {
    let hear_out = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut thrown = 0;
        let mut buf = BytesMut::new();
        while let Ok(length @ 1..) = read_more(&mut stream, &mut buf).await {
            buf.clear();
            thrown += length as u64;
            if thrown > DISCARD_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, hear_out).await;
}
