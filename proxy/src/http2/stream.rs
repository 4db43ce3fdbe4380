//! One HTTP/2 stream: judged, then forwarded with its resets, trailers and pace, or answered.

use super::Connection;
use super::pump::{self, Broken};
use crate::answer::{Denial, Refusal};
use crate::http1::body::is_no_trailer;
use crate::http1::describe;
use crate::http1::head::is_authority;
use crate::judge;
use crate::limits::{INTERIM_ANSWERS, TARGET_BYTES};
use crate::record::Record;
use crate::state::{OpenFlow, Said};
use crate::telemetry::context::Context;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason as Reset, RecvStream, SendStream};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response};
use sluice_policy::{Decision, HttpVersion, Reason};
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

/// Serves one stream to its end.
pub(super) async fn serve(
    connection: Arc<Connection>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let proxy = &connection.proxy;
    let (mut parts, body) = request.into_parts();
    let said = said(&parts);
    let malformed = settle_authority(&mut parts);
    let said = Arc::new(said);
    let flow = proxy.state.open(connection.leg, Said::Request(said.clone()));
    let view = proxy.state.view();
    let mut record = Record::begin(&view, &connection.leg, "http/2");
    describe(&mut record, &said);
    let traceparent = span(&connection, &parts.headers, &mut record);
    let grpc = said.is_grpc();
    let to_head = parts.method == http::Method::HEAD;
    // Where only audited policies govern, what is odd passes as it is.
    let raw_passes = judge::unknown(&view, &connection.leg).decision() == Decision::Allow;
    if let Err(refusal) = malformed
        && !raw_passes
    {
        let reason =
            if matches!(refusal, Refusal::Malformed(_)) { Reason::ParseError } else { Reason::Limit };
        record.judged(&judge::refuse(reason));
        refuse(&mut respond, &refusal, grpc, to_head, &mut record);
        return proxy.records.finish(record);
    }
    let (mut verdict, path) = said.judge(&view, &connection.leg);
    // A tunnel in a stream is not judged by request; nothing here opens one.
    if parts.method == http::Method::CONNECT && !raw_passes && verdict.decision() == Decision::Allow {
        verdict = judge::refuse(Reason::NoRuleMatched);
    }
    record.judged(&verdict);
    if verdict.decision() == Decision::Deny {
        refuse(&mut respond, &Refusal::Denied(Denial::of(&verdict)), grpc, to_head, &mut record);
        return proxy.records.finish(record);
    }
    if path.is_some_and(|path| !set_path(&mut parts, &path)) {
        refuse(&mut respond, &Refusal::Malformed(":path"), grpc, to_head, &mut record);
        return proxy.records.finish(record);
    }
    if let Some(value) = traceparent.and_then(|text| HeaderValue::try_from(text).ok()) {
        parts.headers.insert("traceparent", value);
    }
    drop(view);
    let mut exchange =
        Exchange { connection: &connection, respond, answering: None, record, grpc, to_head, said };
    exchange.run(parts, body, &flow).await;
    let Exchange { record, .. } = exchange;
    proxy.records.finish(record);
}

/// The request as it is judged.
fn said(parts: &Parts) -> judge::Said {
    let host = parts.headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let mut headers = fields(&parts.headers);
    // A condition on `host` holds in HTTP/2 as well.
    if let (None, Some(authority)) = (&host, parts.uri.authority())
        && let Ok(authority) = HeaderValue::from_str(authority.as_str())
    {
        headers.push((http::header::HOST, authority));
    }
    judge::Said {
        version: HttpVersion::Http2,
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        host: parts.uri.authority().map(|authority| authority.as_str().to_owned()).or(host),
        headers,
    }
}

fn fields(map: &HeaderMap) -> Vec<judge::Field> {
    map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Makes sure that there is one host: `:authority` and `Host` must agree, and `Host` alone becomes `:authority`
/// (RFC 9113 §8.3.1).
fn settle_authority(parts: &mut Parts) -> Result<(), Refusal> {
    let length = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if length > TARGET_BYTES {
        return Err(Refusal::TargetTooLong);
    }
    let mut hosts = parts.headers.get_all("host").iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::Malformed("several Host"));
    }
    if let Some(authority) = parts.uri.authority() {
        if !is_authority(authority.as_str().as_bytes()) {
            return Err(Refusal::Malformed(":authority"));
        }
        let differs =
            |host: &HeaderValue| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
        return if host.is_some_and(differs) {
            Err(Refusal::Malformed("Host is not :authority"))
        } else {
            Ok(())
        };
    }
    let host =
        host.filter(|host| is_authority(host.as_bytes())).ok_or(Refusal::Malformed("no :authority"))?;
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| Refusal::Malformed("Host"))?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme.get_or_insert(Scheme::HTTP);
    uri.authority = Some(authority);
    parts.uri = http::Uri::from_parts(uri).map_err(|_| Refusal::Malformed("the target"))?;
    Ok(())
}

/// `false`: it cannot be put there, and what was sent must not go on.
fn set_path(parts: &mut Parts, path: &str) -> bool {
    let target = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut uri = parts.uri.clone().into_parts();
    let Ok(target) = PathAndQuery::try_from(target) else { return false };
    uri.path_and_query = Some(target);
    let Ok(uri) = http::Uri::from_parts(uri) else { return false };
    parts.uri = uri;
    true
}

fn span(connection: &Connection, headers: &HeaderMap, record: &mut Record) -> Option<String> {
    let parent = Context::of(headers.get_all("traceparent").iter().map(HeaderValue::as_bytes));
    let span = connection.proxy.sampler.span(parent, &connection.proxy.ids)?;
    let states = parent.iter().flat_map(|_| headers.get_all("tracestate"));
    let state: Vec<_> = states.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    record.spanned(&span, &state.join(","));
    parent.map(|parent| parent.header(span.context.span_id))
}

/// Answers in the server's place.
fn refuse(
    respond: &mut SendResponse<Bytes>,
    refusal: &Refusal,
    grpc: bool,
    to_head: bool,
    record: &mut Record,
) {
    let (response, body) = refusal.http2(grpc, to_head);
    record.status = u32::from(response.status().as_u16());
    record.grpc_status = grpc.then(|| refusal.grpc_status());
    refusal.error().clone_into(&mut record.error);
    // A stream that is gone needs no answer.
    if let Ok(mut stream) = respond.send_response(response, body.is_none())
        && let Some(body) = body
    {
        let _ = stream.send_data(body, true);
    }
}

struct Exchange<'a> {
    connection: &'a Connection,
    respond: SendResponse<Bytes>,
    /// The answer's body, once it has begun.
    answering: Option<SendStream<Bytes>>,
    record: Record,
    grpc: bool,
    to_head: bool,
    said: Arc<judge::Said>,
}

impl Exchange<'_> {
    async fn run(&mut self, parts: Parts, mut body: RecvStream, flow: &OpenFlow) {
        let whole = body.is_end_stream();
        let send = tokio::select! {
            // First: what has lost its permission is not sent in the same breath.
            biased;
            verdict = flow.revoked() => {
                self.record.judged(verdict);
                return self.refuse(&Refusal::Denied(Denial::of(verdict)));
            }
            send = send_request(self.connection, parts, whole) => send,
            reset = poll_fn(|cx| self.respond.poll_reset(cx)) => {
                drop(reset);
                "client_closed".clone_into(&mut self.record.error);
                return;
            }
        };
        let (answer, mut to_server) = match send {
            Ok(sent) => sent,
            Err(Unsent::Refused(refusal)) => return self.refuse(&refusal),
            Err(Unsent::Gone) => return self.reset(Reset::REFUSED_STREAM, "server_closed"),
        };
        let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
        let (connection, said) = (self.connection, self.said.clone());
        let admits = |trailers: &HeaderMap| {
            let in_place = trailers.keys().all(|name| !is_no_trailer(name.as_str()));
            in_place && said.admits(&connection.proxy.state.view(), &connection.leg, fields(trailers))
        };
        let ended = {
            let upload = async {
                if whole { Ok(None) } else { pump::run(&mut body, &mut to_server, &up, admits).await }
            };
            let download = download(answer, &mut self.respond, &mut self.answering, &mut self.record, &down);
            tokio::pin!(upload, download);
            let mut uploading = true;
            loop {
                tokio::select! {
                    biased;
                    verdict = flow.revoked() => break Ended::Revoked(Box::new(verdict.clone())),
                    done = &mut download => break done.map_or_else(Ended::Broken, |()| Ended::Whole),
                    done = &mut upload, if uploading => match done {
                        // The server takes no more; it may still answer.
                        Ok(_) | Err(Broken::Receiver(_)) => uploading = false,
                        Err(Broken::Sender(error)) => break Ended::Broken(Broken::Receiver(error.reason())),
                    },
                }
            }
        };
        self.record.bytes_up = up.load(Ordering::Relaxed);
        self.record.bytes_down = down.load(Ordering::Relaxed);
        self.end(ended, &mut to_server);
    }

    fn end(&mut self, ended: Ended, to_server: &mut SendStream<Bytes>) {
        match ended {
            Ended::Whole => {}
            Ended::Revoked(verdict) => {
                to_server.send_reset(Reset::CANCEL);
                self.record.judged(&verdict);
                self.revoke(&Refusal::Denied(Denial::of(&verdict)));
                "revoked".clone_into(&mut self.record.error);
            }
            Ended::Broken(Broken::Receiver(reason)) => {
                to_server.send_reset(reason.unwrap_or(Reset::CANCEL));
                "client_closed".clone_into(&mut self.record.error);
            }
            Ended::Broken(Broken::Sender(error)) => {
                let reason = error.reason().unwrap_or(Reset::INTERNAL_ERROR);
                if error.is_reset() || self.answering.is_some() {
                    self.reset(reason, "server_reset");
                } else if error.is_go_away() && error.is_remote() && reason == Reset::NO_ERROR {
                    // The server did not look at the stream: the client may send it again.
                    self.reset(Reset::REFUSED_STREAM, "server_closed");
                } else {
                    self.refuse(&Refusal::BadAnswer("none came"));
                }
            }
        }
    }

    /// Closes an open stream with the reason, in the words that its protocol has left.
    fn revoke(&mut self, refusal: &Refusal) {
        match &mut self.answering {
            None => self.refuse(refusal),
            Some(stream) if self.grpc => {
                self.record.grpc_status = Some(refusal.grpc_status());
                let _ = stream.send_trailers(refusal.grpc_trailers());
            }
            Some(stream) => stream.send_reset(Reset::CANCEL),
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        refuse(&mut self.respond, refusal, self.grpc, self.to_head, &mut self.record);
    }

    fn reset(&mut self, reason: Reset, error: &str) {
        match &mut self.answering {
            Some(stream) => stream.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
        error.clone_into(&mut self.record.error);
    }
}

/// How an exchange ended.
enum Ended {
    Whole,
    Revoked(Box<sluice_policy::Verdict>),
    Broken(Broken),
}

/// Why a request did not reach the server.
enum Unsent {
    Refused(Refusal),
    /// The server closed the connection that had served before: nothing was sent, the client may try again.
    Gone,
}

type Sent = (h2::client::ResponseFuture, SendStream<Bytes>);

async fn send_request(connection: &Connection, parts: Parts, whole: bool) -> Result<Sent, Unsent> {
    let failed = |error: h2::Error| {
        // The server takes no more streams: the client is told, and goes on with a new connection.
        if error.is_go_away() && error.is_remote() {
            connection.gone.cancel();
        }
        match connection.is_gone() {
            true => Unsent::Gone,
            false => Unsent::Refused(Refusal::BadAnswer("no HTTP/2")),
        }
    };
    let send = connection.upstream().await.map_err(Unsent::Refused)?;
    let mut ready = send.ready().await.map_err(failed)?;
    ready.send_request(Request::from_parts(parts, ()), whole).map_err(failed)
}

/// Brings the answer back: interim ones, the head, the body, the trailers.
async fn download(
    mut answer: h2::client::ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    answering: &mut Option<SendStream<Bytes>>,
    record: &mut Record,
    count: &AtomicU64,
) -> Result<(), Broken> {
    let mut interims = 0;
    let response = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
            interims += 1;
            if interims > INTERIM_ANSWERS {
                return Poll::Ready(Err(Broken::Sender(Reset::ENHANCE_YOUR_CALM.into())));
            }
            // A client that takes no interim answers still gets the final one.
            let _ = respond.send_informational(interim);
        }
        if let Poll::Ready(response) = Pin::new(&mut answer).poll(cx) {
            return Poll::Ready(response.map_err(Broken::Sender));
        }
        let left =
            |reset: Result<Reset, h2::Error>| Broken::Receiver(reset.map_or_else(|e| e.reason(), Some));
        respond.poll_reset(cx).map(|reset| Err(left(reset)))
    })
    .await?;
    let (head, mut body) = response.into_parts();
    record.status = u32::from(head.status.as_u16());
    record.grpc_status = grpc_status(&head.headers);
    let whole = body.is_end_stream();
    let mut out = Response::new(());
    *out.status_mut() = head.status;
    *out.headers_mut() = head.headers;
    let stream = respond.send_response(out, whole).map_err(|error| Broken::Receiver(error.reason()))?;
    let stream = answering.insert(stream);
    if whole {
        return Ok(());
    }
    let trailers = pump::run(&mut body, stream, count, |_| true).await?;
    if let Some(status) = trailers.as_ref().and_then(grpc_status) {
        record.grpc_status = Some(status);
    }
    Ok(())
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
