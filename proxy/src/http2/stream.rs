//! One HTTP/2 stream: judged, then forwarded with its resets, trailers and pace, or answered.

use super::pump::{self, Broken};
use super::relay::message::{is_scheme, is_trailer, odd_field, odd_tunnel, path_of};
use super::{Connection, Server};
use crate::answer::{Denial, Refusal};
use crate::draft::Draft;
use crate::http1::head::is_authority;
use crate::judge::{self, Judged, Leg};
use crate::limits::{INTERIM_ANSWERS, REQUEST_TIMEOUT, TARGET_BYTES};
use crate::service::route::{Route, Target, Wish};
use crate::share::Crowd;
use crate::state::{OpenFlow, Said, View};
use crate::telemetry::context::Context;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason as Reset, RecvStream, SendStream};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response};
use sluice_policy::{Decision, HttpVersion, Reason};
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use tokio::sync::oneshot;

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
    let judge = |view: &View, leg: &Leg| judged(&said, malformed.as_ref().err(), view, leg);
    let full = connection.client.service.then(|| connection.upstreams.full()).flatten().unwrap_or_default();
    let route = proxy.route(&connection.client, &Said::Request(said.clone()), wish(&full), judge);
    let Route { target, judged, flow, view, load } = route;
    let mut record = target.record(&view, "http/2");
    drop(view);
    record.describe(&said);
    let traceparent = span(&connection, &parts.headers, &mut record);
    let grpc = said.is_grpc();
    let to_head = parts.method == http::Method::HEAD;
    record.judged(&judged.verdict);
    let refusal = match malformed {
        Err(refusal) if judged.malformed => Some(refusal),
        _ if judged.is_denied() => Some(Refusal::Denied(Denial::of(&judged.verdict))),
        _ if judged.path.is_some_and(|path| !set_path(&mut parts, &path)) => {
            Some(Refusal::Malformed(":path"))
        }
        _ => None,
    };
    if let Some(refusal) = refusal {
        refuse(&mut respond, &refusal, grpc, to_head, &mut record);
        return proxy.records.finish(record);
    }
    if let Some(value) = traceparent.and_then(|text| HeaderValue::try_from(text).ok()) {
        parts.headers.insert("traceparent", value);
    }
    let mut exchange =
        Exchange { connection: &connection, target, respond, answering: None, record, grpc, to_head, said };
    exchange.run(parts, body, &flow).await;
    drop(load);
    let Exchange { record, .. } = exchange;
    proxy.records.finish(record);
}

/// The least loaded backend; where there may be no more connections, of those there are.
fn wish(full: &[SocketAddr]) -> Wish<'_> {
    if full.is_empty() { Wish::ANY } else { Wish::Among(full) }
}

/// Judges one stream. What is odd passes as it is where only audited policies govern.
pub(super) fn judged(said: &judge::Said, malformed: Option<&Refusal>, view: &View, leg: &Leg) -> Judged {
    let raw_passes = || judge::unknown(view, leg).decision() == Decision::Allow;
    if let Some(refusal) = malformed
        && !raw_passes()
    {
        let malformed = matches!(refusal, Refusal::Malformed(_));
        let reason = if malformed { Reason::ParseError } else { Reason::Limit };
        return Judged { malformed: true, ..Judged::of(judge::refuse(reason)) };
    }
    let mut judged = said.judge(view, leg);
    let other = said.protocol.as_ref().is_some_and(|name| !name.eq_ignore_ascii_case("websocket"));
    if other && !judged.is_denied() && !raw_passes() {
        return Judged::of(judge::refuse(Reason::NoRuleMatched));
    }
    if said.is_plain_connect() {
        // It has none that could go on in its place.
        judged.path = None;
    }
    judged
}

/// The request as it is judged.
pub(super) fn said(parts: &Parts) -> judge::Said {
    let host = parts.headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let protocol = parts.extensions.get::<Protocol>().map(|protocol| protocol.as_str().to_owned());
    let connect = parts.method == http::Method::CONNECT && protocol.is_none();
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
        path: path_of(&parts.uri, connect),
        query: parts.uri.query().map(str::to_owned),
        host: parts.uri.authority().map(|authority| authority.as_str().to_owned()).or(host),
        headers,
        protocol,
    }
}

fn fields(map: &HeaderMap) -> Vec<judge::Field> {
    map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Makes sure that there is one host: `:authority` and `Host` must agree, and `Host` alone becomes `:authority`
/// (RFC 9113 §8.3.1).
pub(super) fn settle_authority(parts: &mut Parts) -> Result<(), Refusal> {
    if let Some(refusal) = odd_field(parts.headers.iter()) {
        return Err(refusal);
    }
    if parts.uri.scheme_str().is_some_and(|scheme| !is_scheme(scheme.as_bytes())) {
        return Err(Refusal::Malformed(":scheme"));
    }
    let connect = parts.method == http::Method::CONNECT;
    let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
    if let Some(refusal) = connect.then(|| odd_tunnel(protocol, parts.headers.keys())).flatten() {
        return Err(refusal);
    }
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

fn span(connection: &Connection, headers: &HeaderMap, record: &mut Draft) -> Option<String> {
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
    record: &mut Draft,
) {
    let (response, body) = refusal.http2(grpc, to_head, record.tells());
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
    target: Target,
    respond: SendResponse<Bytes>,
    /// The answer's body, once it has begun.
    answering: Option<SendStream<Bytes>>,
    record: Draft,
    grpc: bool,
    to_head: bool,
    said: Arc<judge::Said>,
}

impl Exchange<'_> {
    /// Sends the head on; `None`: it has been answered instead.
    async fn send(&mut self, parts: Parts, whole: bool, flow: &OpenFlow) -> Option<Sent> {
        let send = tokio::select! {
            // First: what has lost its permission is not sent in the same breath.
            biased;
            verdict = flow.revoked() => {
                self.record.judged(verdict);
                self.refuse(&Refusal::Denied(Denial::of(verdict)));
                return None;
            }
            send = send_request(self.connection, &self.target, parts, whole) => send,
            reset = poll_fn(|cx| self.respond.poll_reset(cx)) => {
                drop(reset);
                "client_closed".clone_into(&mut self.record.error);
                return None;
            }
        };
        match send {
            Ok(sent) => return Some(sent),
            Err(Unsent::Limit) => {
                let verdict = judge::refuse(Reason::Limit);
                self.record.judged(&verdict);
                self.refuse(&Refusal::Denied(Denial::of(&verdict)));
            }
            Err(Unsent::Refused(refusal)) => self.refuse(&refusal),
            Err(Unsent::Gone) => self.reset(Reset::REFUSED_STREAM, "server_closed"),
        }
        None
    }

    async fn run(&mut self, parts: Parts, mut body: RecvStream, flow: &OpenFlow) {
        let whole = body.is_end_stream();
        // The server is held until the stream has ended: one that nobody holds may make way for another.
        let Some((_server, answer, mut to_server)) = self.send(parts, whole, flow).await else { return };
        let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
        let (connection, said, leg) = (self.connection, self.said.clone(), self.target.leg);
        let tunnel = said.method == "CONNECT";
        let (agree, agreed) = oneshot::channel();
        let answered = AtomicBool::new(false);
        let late = tokio::time::sleep(REQUEST_TIMEOUT);
        let admits = |trailers: &HeaderMap| {
            // RFC 9113 §8.5: a tunnel has data alone.
            let in_place = !tunnel && trailers.iter().all(|(name, value)| is_trailer(name, value));
            in_place && said.admits(&connection.proxy.state.view(), &leg, fields(trailers))
        };
        let ended = {
            let upload = async {
                if whole {
                    return Ok(None);
                }
                // What the client says before the server agrees to a tunnel is of that tunnel or of nothing.
                if tunnel && agreed.await != Ok(true) {
                    let _ = to_server.send_data(Bytes::new(), true);
                    return Ok(None);
                }
                pump::run(&mut body, &mut to_server, (&up, &connection.crowd), admits).await
            };
            let download = download(
                answer,
                &mut self.respond,
                &mut self.answering,
                &mut self.record,
                (&down, &connection.crowd),
                (tunnel, agree, &answered),
            );
            tokio::pin!(upload, download, late);
            let (mut uploading, mut downloading) = (true, true);
            let mut waiting = !self.grpc;
            loop {
                tokio::select! {
                    biased;
                    verdict = flow.revoked() => break Ended::Revoked(Box::new(verdict.clone())),
                    () = &mut late, if waiting => {
                        waiting = false;
                        if !answered.load(Ordering::Relaxed) {
                            break Ended::Late(uploading && !tunnel);
                        }
                    }
                    done = &mut download, if downloading => match done {
                        // The client may still have something to say.
                        Ok(()) if tunnel && uploading => downloading = false,
                        Ok(()) => break Ended::Whole,
                        Err(broken) => break Ended::Broken(broken),
                    },
                    done = &mut upload, if uploading => match done {
                        Ok(_) | Err(Broken::Receiver(_)) if !downloading => break Ended::Whole,
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
            Ended::Late(body) => {
                to_server.send_reset(Reset::CANCEL);
                self.refuse(if body { &Refusal::BodyTimeout } else { &Refusal::Late });
            }
            Ended::Revoked(verdict) => {
                to_server.send_reset(Reset::CANCEL);
                self.record.judged(&verdict);
                self.revoke(&Refusal::Denied(Denial::of(&verdict)));
                "revoked".clone_into(&mut self.record.error);
            }
            Ended::Broken(Broken::Receiver(reason)) => {
                let reason = reason.unwrap_or(Reset::CANCEL);
                to_server.send_reset(reason);
                // It may have gone, or may have said what cannot go on.
                self.reset(reason, "client_closed");
            }
            Ended::Broken(Broken::Sender(error)) => {
                let reason = error.reason().unwrap_or(Reset::INTERNAL_ERROR);
                if !error.is_remote() {
                    to_server.send_reset(reason);
                }
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
    /// It has waited too long: for the rest of its body, or for its server.
    Late(bool),
    Revoked(Box<sluice_policy::Verdict>),
    Broken(Broken),
}

/// Why a request did not reach the server.
enum Unsent {
    Refused(Refusal),
    /// The server closed the connection that had served before: nothing was sent, the client may try again.
    Gone,
    /// The source may have no more connections.
    Limit,
}

type Sent = (Arc<Server>, h2::client::ResponseFuture, SendStream<Bytes>);

async fn send_request(
    connection: &Connection,
    target: &Target,
    parts: Parts,
    whole: bool,
) -> Result<Sent, Unsent> {
    let (server, mut ready) = open_stream(connection, target).await?;
    if parts.extensions.get::<Protocol>().is_some()
        && !server.takes_upgrades(&ready).await.map_err(Unsent::Refused)?
    {
        return Err(Unsent::Refused(Refusal::NoUpgrade));
    }
    let sent = ready.send_request(Request::from_parts(parts, ()), whole);
    let (answer, to_server) = sent.map_err(|error| failed(&server, &error))?;
    Ok((server, answer, to_server))
}

/// A connection to the server that takes one more stream. A backend that had said on its old one that it takes no more
/// is dialled anew: nothing of the stream was sent on that.
async fn open_stream(
    connection: &Connection,
    target: &Target,
) -> Result<(Arc<Server>, SendRequest<Bytes>), Unsent> {
    let open = async |server: &Arc<Server>| {
        let connected = server.connected(&connection.proxy, target).await;
        if connected.is_err() && connection.client.service {
            connection.upstreams.forget(server);
        }
        connected.map_err(Unsent::Refused)?.ready().await.map_err(|error| failed(server, &error))
    };
    let server = connection.server(target).ok_or(Unsent::Limit)?;
    match open(&server).await {
        Ok(ready) => Ok((server, ready)),
        Err(Unsent::Gone) if connection.client.service => {
            connection.upstreams.forget(&server);
            let server = connection.server(target).ok_or(Unsent::Limit)?;
            let ready = open(&server).await?;
            Ok((server, ready))
        }
        Err(unsent) => Err(unsent),
    }
}

/// The server takes no more streams, and so the client is told; or it speaks no HTTP/2.
fn failed(server: &Server, error: &h2::Error) -> Unsent {
    if error.is_go_away() && error.is_remote() {
        server.leaves();
    }
    match server.is_gone() {
        true => Unsent::Gone,
        false => Unsent::Refused(Refusal::BadAnswer("no HTTP/2")),
    }
}

/// Brings the answer back: interim ones, the head, the body, the trailers.
async fn download(
    mut answer: h2::client::ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    answering: &mut Option<SendStream<Bytes>>,
    record: &mut Draft,
    count: (&AtomicU64, &Crowd),
    (tunnel, agree, answered): (bool, oneshot::Sender<bool>, &AtomicBool),
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
    answered.store(true, Ordering::Relaxed);
    let (head, mut body) = response.into_parts();
    record.status = u32::from(head.status.as_u16());
    record.grpc_status = grpc_status(&head.headers);
    let whole = body.is_end_stream();
    let mut out = Response::new(());
    *out.status_mut() = head.status;
    *out.headers_mut() = head.headers;
    let stream = respond.send_response(out, whole).map_err(|error| Broken::Receiver(error.reason()))?;
    let stream = answering.insert(stream);
    let agreed = head.status.is_success();
    // Nobody waits for it but a tunnel.
    let _ = agree.send(agreed);
    if whole {
        return Ok(());
    }
    let trailers = pump::run(&mut body, stream, count, |_| !(tunnel && agreed)).await?;
    if let Some(status) = trailers.as_ref().and_then(grpc_status) {
        record.grpc_status = Some(status);
    }
    Ok(())
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
