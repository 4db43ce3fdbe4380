//! HTTP/1: one connection, request by request, each judged before a byte of it goes on.
//!
//! One connection to the server per connection of the client, dialled at the first allow and gone with it: nothing
//! is shared between clients. Heads and bodies go on as they came; see [`head`] for what is refused and why the
//! framing is done here, where both headers of a smuggled request can be seen. Called by [`Proxy`].

pub mod body;
mod exchange;
pub mod head;

use crate::answer::{Denial, Refusal};
use crate::judge;
use crate::limits::{DISCARD_BYTES, HEAD_TIMEOUT, IDLE_TIMEOUT, LINGER};
use crate::proxy::{Accepted, Proxy, reset};
use crate::record::{Record, bounded};
use crate::state::{OpenFlow, Said, View};
use crate::telemetry::context::Context;
use crate::tunnel;
use body::read_more;
use bytes::{Buf as _, BytesMut};
use exchange::{After, Exchange};
use head::{Bad, Changes, Framing, RequestHead, Upgrade};
use sluice_policy::{Decision, HttpVersion, Reason, Verdict};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The server's end of a connection.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    pub(crate) buf: BytesMut,
    /// It has answered before: if it is gone now, the client may be told by closing.
    pub(crate) reused: bool,
}

struct Connection {
    proxy: Arc<Proxy>,
    client: Accepted,
    upstream: Option<Upstream>,
}

/// What came of waiting for a request.
enum Next {
    Request(Box<RequestHead>),
    Bad(Bad),
    Slow,
    Over,
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
    let mut connection = Connection { proxy, client, upstream: None };
    loop {
        let step = match connection.next_request().await {
            Next::Request(head) => connection.request(&head).await,
            Next::Bad(bad) => connection.unreadable(bad).await,
            Next::Slow => connection.refuse_unread(Refusal::HeadTimeout).await,
            Next::Over => Step::Close,
        };
        match step {
            Step::Again => {}
            Step::Close => return linger(connection.client.stream).await,
            Step::Abort => return reset(&connection.client.stream),
            Step::Tunnel => {
                let Connection { proxy, client, upstream } = connection;
                let server = upstream.map(|upstream| (upstream.stream, upstream.buf.freeze()));
                return tunnel::serve(&proxy, client, Said::Raw, server).await;
            }
        }
    }
}

impl Connection {
    /// Waits for a whole head. It stays in the buffer: a flow that fails open takes it along.
    async fn next_request(&mut self) -> Next {
        let mut looked = 0;
        let mut began = (!self.client.buf.is_empty()).then(tokio::time::Instant::now);
        loop {
            match head::find_end(&self.client.buf, looked) {
                Ok(Some(end)) => {
                    return match RequestHead::parse(&self.client.buf[..end]) {
                        Ok(head) => {
                            if !matters_raw(&head) {
                                self.client.buf.advance(end);
                            }
                            Next::Request(Box::new(head))
                        }
                        Err(bad) => Next::Bad(bad),
                    };
                }
                Ok(None) => looked = self.client.buf.len(),
                Err(bad) => return Next::Bad(bad),
            }
            let deadline =
                began.map_or_else(|| tokio::time::Instant::now() + IDLE_TIMEOUT, |at| at + HEAD_TIMEOUT);
            let idle = began.is_none();
            let Self { proxy, client, upstream } = self;
            let read = tokio::select! {
                // First: a request that has come is served, whatever else has happened.
                biased;
                read = read_more(&mut client.stream, &mut client.buf) => read,
                () = tokio::time::sleep_until(deadline) => return if idle { Next::Over } else { Next::Slow },
                // The server closed: the client hears it now, as it would without us, and not at its next request.
                () = left(upstream.as_mut()), if idle => return Next::Over,
                () = proxy.draining(), if idle => return Next::Over,
            };
            match read {
                Ok(0) | Err(_) => return Next::Over,
                Ok(_) => began = began.or_else(|| Some(tokio::time::Instant::now())),
            }
        }
    }

    /// Whether bytes that nobody reads may pass: then nothing needs to be readable.
    fn fails_open(&self) -> bool {
        judge::unknown(&self.proxy.state.view(), &self.client.leg).decision() == Decision::Allow
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
        if self.fails_open() {
            return Step::Tunnel;
        }
        let mut record = Record::begin(&self.proxy.state.view(), &self.client.leg, "http/1.1");
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
        let said = Arc::new(said(head));
        let flow = self.proxy.state.open(self.client.leg, Said::Request(said.clone()));
        let view = self.proxy.state.view();
        let mut record =
            Record::begin(&view, &self.client.leg, if head.minor == 0 { "http/1.0" } else { "http/1.1" });
        describe(&mut record, &said);
        let span = self.span(head, &mut record);
        let (verdict, path) = self.verdict(head, &said, &view);
        record.judged(&verdict);
        if verdict.decision() == Decision::Deny {
            return self.deny(head, &verdict, record).await;
        }
        if matters_raw(head) {
            if self.fails_open() {
                // Only audited policies govern: what it becomes is not ours to read.
                return Step::Tunnel;
            }
            if let Ok(Some(end)) = head::find_end(&self.client.buf, 0) {
                self.client.buf.advance(end);
            }
        }
        if let Err(refusal) = self.dial().await {
            let close = self.must_close(head);
            self.answer(refusal, close, head.method == "HEAD", record).await;
            return if close { Step::Close } else { self.discard(head).await };
        }
        let changes = Changes { path, traceparent: span };
        self.exchange(head, &changes, &flow, &said, record).await
    }

    /// A WebSocket and CONNECT are judged like any request, and need a rule that names them. What any other upgrade
    /// becomes is refused, but where raw bytes may pass anyway. A body would be in the way of a tunnel.
    fn verdict(&self, head: &RequestHead, said: &judge::Said, view: &View) -> (Verdict, Option<String>) {
        let (verdict, path) = said.judge(view, &self.client.leg);
        let odd = head.upgrade == Upgrade::Other
            || (head.method == "CONNECT" && (head.framing != Framing::Empty || head.minor == 0));
        if !odd || verdict.decision() == Decision::Deny || self.fails_open() {
            return (verdict, path);
        }
        (judge::refuse(Reason::NoRuleMatched), None)
    }

    /// The span of the request, if it gets one; returns the `traceparent` that goes on.
    fn span(&self, head: &RequestHead, record: &mut Record) -> Option<String> {
        let parent = Context::of(head.values("traceparent"));
        let span = self.proxy.sampler.span(parent, &self.proxy.ids)?;
        // Without a valid parent there is no state to go with it (Trace Context §3.3).
        let state: Vec<_> =
            parent.iter().flat_map(|_| head.values("tracestate")).map(String::from_utf8_lossy).collect();
        record.spanned(&span, &state.join(","));
        parent.map(|parent| parent.header(span.context.span_id))
    }

    async fn deny(&mut self, head: &RequestHead, verdict: &Verdict, record: Record) -> Step {
        let close = self.must_close(head);
        let refusal = Refusal::Denied(Denial::of(verdict));
        self.answer(refusal, close, head.method == "HEAD", record).await;
        if close { Step::Close } else { self.discard(head).await }
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

    async fn dial(&mut self) -> Result<(), Refusal> {
        if self.upstream.is_some() {
            return Ok(());
        }
        match self.proxy.dialer.dial(&self.client.leg).await {
            Ok(stream) => {
                self.upstream = Some(Upstream { stream, buf: BytesMut::new(), reused: false });
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Refusal::Timeout),
            Err(_) => Err(Refusal::Unreachable),
        }
    }

    async fn exchange(
        &mut self,
        head: &RequestHead,
        changes: &Changes,
        flow: &OpenFlow,
        said: &judge::Said,
        mut record: Record,
    ) -> Step {
        let Some(mut upstream) = self.upstream.take() else { return Step::Abort };
        let exchange = Exchange { proxy: &self.proxy, head, changes, flow, said, leg: self.client.leg };
        let after = exchange.run(&mut self.client, &mut upstream, &mut record).await;
        let step = match after {
            After::Reusable => {
                upstream.reused = true;
                self.upstream = Some(upstream);
                Step::Again
            }
            After::Close => Step::Close,
            After::Abort => {
                reset(&upstream.stream);
                Step::Abort
            }
            // Only audited policies govern: what the server says is not ours to read either.
            After::Unreadable(_) if !upstream.buf.is_empty() && self.fails_open() => {
                self.upstream = Some(upstream);
                Step::Tunnel
            }
            After::Unreadable(what) => {
                reset(&upstream.stream);
                self.answer(Refusal::BadAnswer(what), true, head.method == "HEAD", record).await;
                return Step::Close;
            }
            After::Answer(refusal) => {
                reset(&upstream.stream);
                self.answer(refusal, true, head.method == "HEAD", record).await;
                return Step::Close;
            }
            After::Revoked(refusal) => {
                reset(&upstream.stream);
                let close = self.proxy.is_draining();
                self.answer(refusal, close, head.method == "HEAD", record).await;
                return if close { Step::Close } else { Step::Again };
            }
        };
        self.proxy.records.finish(record);
        step
    }

    async fn answer(&mut self, refusal: Refusal, close: bool, to_head: bool, mut record: Record) {
        let bytes = refusal.http1(close, to_head);
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
    matches!(head.upgrade, Upgrade::WebSocket | Upgrade::Other) || head.method == "CONNECT"
}

/// Ends when the server has closed, or says something that nobody asked for.
async fn left(upstream: Option<&mut Upstream>) {
    match upstream {
        None => std::future::pending().await,
        Some(upstream) if !upstream.buf.is_empty() => {}
        Some(upstream) => loop {
            let mut byte = [0];
            let readable = upstream.stream.readable().await;
            match upstream.stream.try_read(&mut byte) {
                // Readable was said in error, and is taken back.
                Err(error) if readable.is_ok() && error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        },
    }
}

/// The request as it is judged. What is not passed on is not judged.
fn said(head: &RequestHead) -> judge::Said {
    let dropped =
        |name: &str| head.upgrade == Upgrade::H2c && (name == "upgrade" || name == "http2-settings");
    judge::Said {
        version: HttpVersion::Http1,
        method: head.method.clone(),
        path: head.path().to_owned(),
        query: head.query().map(str::to_owned),
        host: head.host.clone(),
        headers: head.headers().filter(|(name, _)| !dropped(name.as_str())).collect(),
    }
}

/// Writes down what was asked for.
pub(crate) fn describe(record: &mut Record, said: &judge::Said) {
    record.method = bounded(&said.method);
    record.path = bounded(&said.path);
    record.host = bounded(said.host.as_deref().unwrap_or_default());
    if said.is_grpc()
        && let Some((service, method)) = said.path.strip_prefix('/').and_then(|path| path.split_once('/'))
    {
        record.grpc_service = bounded(service);
        record.grpc_method = bounded(method);
    }
}

/// Closes our half and lets the client read the last answer before the socket goes: a close with unread bytes would
/// be a reset, which takes the answer away.
async fn linger(mut stream: TcpStream) {
    let hear_out = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut thrown = 0;
        let mut buf = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buf).await {
            thrown += length as u64;
            if thrown > DISCARD_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, hear_out).await;
}
