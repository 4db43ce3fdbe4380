//! HTTP/2 and gRPC through the proxy, on real sockets: streams judged one by one, resets, trailers, pace.

mod common;

use bytes::Bytes;
use common::{CLIENT, Recorder, World, shop, snapshot, soon};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use sluice_policy::{DenyDetail, OnDeny};
use sluice_proxy::telemetry::sampler::Sampler;
use std::future::poll_fn;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A stream as the server got it.
struct Served {
    request: Request<RecvStream>,
    respond: h2::server::SendResponse<Bytes>,
}

/// A server that hands its streams to the test, and the addresses of those who connected.
async fn server() -> (SocketAddr, mpsc::Receiver<Served>, mpsc::Receiver<SocketAddr>) {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let (streams, served) = mpsc::channel(256);
    let (callers, called) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            callers.send(peer).await.expect("the test listens");
            let streams = streams.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    if streams.send(Served { request, respond }).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (at, served, called)
}

async fn connect(world: &World) -> SendRequest<Bytes> {
    let stream = world.connect_from(CLIENT).await;
    let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tokio::spawn(async move { drop(connection.await) });
    send
}

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://cart{path}")).body(()).expect("a request")
}

fn grpc(method: &str) -> Request<()> {
    let mut request = request("POST", &format!("/shop.v1.Cart/{method}"));
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request
}

type Answering = (h2::client::ResponseFuture, SendStream<Bytes>);

async fn send(client: &SendRequest<Bytes>, request: Request<()>, whole: bool) -> Answering {
    let mut ready = soon("a free stream", client.clone().ready()).await.expect("the connection lives");
    ready.send_request(request, whole).expect("sent")
}

async fn text(mut body: RecvStream) -> String {
    let mut text = Vec::new();
    while let Some(data) = soon("data", body.data()).await {
        let data = data.expect("data");
        body.flow_control().release_capacity(data.len()).expect("capacity");
        text.extend_from_slice(&data);
    }
    String::from_utf8(text).expect("text")
}

fn answer(served: &mut Served, status: u16) -> SendStream<Bytes> {
    let response =
        Response::builder().status(status).header("x-served-by", "cart").body(()).expect("a response");
    served.respond.send_response(response, false).expect("sent")
}

#[tokio::test]
async fn each_stream_is_judged_and_a_denied_one_reaches_nobody() {
    let (at, mut served, mut called) = server().await;
    let mut world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (denied, _) = send(&client, request("DELETE", "/api"), true).await;
    let denied = soon("a denial", denied).await.expect("an answer");
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(text(denied.into_body()).await, "access denied: no_rule_matched\n");
    assert!(called.try_recv().is_err(), "nobody was dialled for a denial");
    let mut answers = Vec::new();
    for number in 0..100 {
        let path = if number % 2 == 0 { format!("/api/{number}") } else { format!("/admin/{number}") };
        answers.push((number, send(&client, request("GET", &path), true).await.0));
    }
    let serving = tokio::spawn(async move {
        let mut paths = Vec::new();
        while paths.len() < 50 {
            let mut stream = served.recv().await.expect("a stream");
            let path = stream.request.uri().path().to_owned();
            let mut body = answer(&mut stream, 200);
            body.send_data(Bytes::from(path.clone()), true).expect("sent");
            paths.push(path);
        }
        (paths, served)
    });
    for (number, response) in answers {
        let response = soon("an answer", response).await.expect("an answer");
        if number % 2 == 0 {
            assert_eq!(response.headers()["x-served-by"], "cart");
            assert_eq!(text(response.into_body()).await, format!("/api/{number}"));
        } else {
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
        }
    }
    let (paths, mut served) = soon("the server", serving).await.expect("no panic");
    assert!(paths.iter().all(|path| path.starts_with("/api/")), "{paths:?}");
    assert!(served.try_recv().is_err(), "no other stream came");
    assert_eq!(called.recv().await.map(|peer| peer.ip()), Some(CLIENT));
    assert!(called.try_recv().is_err(), "one connection to the server per client connection");
    let record = world.record().await;
    assert_eq!((record.protocol.as_str(), record.verdict.as_str(), record.status), ("http/2", "deny", 403));
}

#[tokio::test]
async fn a_denied_grpc_call_tells_what_the_policy_lets_it() {
    let (at, _served, _called) = server().await;
    let on_deny = OnDeny { detail: DenyDetail::NearestMiss, ..OnDeny::default() };
    let world = World::start(&common::Rules { on_deny, ..shop() }, at).await;
    let client = connect(&world).await;
    let (denied, _) = send(&client, grpc("100%"), true).await;
    let denied = soon("a denial", denied).await.expect("an answer");
    // Percent-encoded, as gRPC has it.
    let expected = "access denied: no_rule_matched by L7NetworkPolicy/shop/cart; nearest is rule frontend: \
                    path /shop.v1.Cart/100%25 is read differently by different servers";
    assert_eq!(denied.headers()["grpc-message"], expected);
}

#[tokio::test]
async fn a_denied_grpc_call_is_told_in_grpc() {
    let (at, _served, mut called) = server().await;
    let mut world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (denied, mut body) = send(&client, grpc("Empty"), false).await;
    body.send_data(Bytes::from_static(b"secret"), false).expect("sent");
    let denied = soon("a denial", denied).await.expect("an answer");
    assert_eq!(denied.status(), StatusCode::OK);
    let headers = denied.headers();
    assert_eq!(headers["content-type"], "application/grpc");
    assert_eq!(headers["grpc-status"], "7");
    assert_eq!(headers["grpc-message"], "access denied: no_rule_matched");
    assert!(denied.body().is_end_stream(), "trailers alone");
    assert!(called.try_recv().is_err());
    let record = world.record().await;
    assert_eq!((record.grpc_service.as_str(), record.grpc_method.as_str()), ("shop.v1.Cart", "Empty"));
    assert_eq!((record.grpc_status, record.status), (Some(7), 200));
    assert_eq!(record.nearest_miss, "gRPC method Empty not in [GetCart, WatchCart]");
}

#[tokio::test]
async fn a_grpc_stream_goes_both_ways_with_its_trailers() {
    let (at, mut served, _called) = server().await;
    let mut world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (response, mut up) = send(&client, grpc("WatchCart"), false).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    assert_eq!(stream.request.headers()["te"], "trailers");
    assert_eq!(stream.request.uri(), "http://cart/shop.v1.Cart/WatchCart");
    let mut down = answer(&mut stream, 200);
    let response = soon("the head", response).await.expect("a head");
    let mut from_server = response.into_body();
    for round in 0..3 {
        let message = Bytes::from(format!("message {round}"));
        up.send_data(message.clone(), false).expect("sent");
        let got = soon("up", stream.request.body_mut().data()).await.expect("data").expect("data");
        assert_eq!(got, message);
        down.send_data(message.clone(), false).expect("sent");
        assert_eq!(soon("down", from_server.data()).await.expect("data").expect("data"), message);
    }
    up.send_data(Bytes::new(), true).expect("half-closed");
    let end = soon("the end", stream.request.body_mut().data()).await;
    assert!(end.is_none_or(|last| last.expect("data").is_empty()) && stream.request.body().is_end_stream());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("5"));
    trailers.insert("x-more", HeaderValue::from_static("y"));
    down.send_trailers(trailers.clone()).expect("sent");
    assert!(soon("the end", from_server.data()).await.is_none());
    assert_eq!(soon("trailers", from_server.trailers()).await.expect("trailers"), Some(trailers));
    let record = world.record().await;
    assert_eq!((record.grpc_status, record.bytes_up, record.bytes_down), (Some(5), 27, 27));
    assert_eq!((record.verdict.as_str(), record.rule.as_str()), ("allow", "frontend"));
}

#[tokio::test]
async fn resets_reach_the_other_end_with_their_reason() {
    let (at, mut served, _called) = server().await;
    let mut world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (_response, mut up) = send(&client, grpc("WatchCart"), false).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    up.send_reset(Reason::ENHANCE_YOUR_CALM);
    let reason = soon("the reset", poll_fn(|cx| stream.respond.poll_reset(cx))).await.expect("a reset");
    assert_eq!(reason, Reason::ENHANCE_YOUR_CALM);
    assert_eq!(world.record().await.error, "client_closed");
    let (response, _up) = send(&client, grpc("WatchCart"), false).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    stream.respond.send_reset(Reason::REFUSED_STREAM);
    let error = soon("the reset", response).await.expect_err("a reset");
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
    assert_eq!(world.record().await.error, "server_reset");
    // In the middle of an answer that says nothing for a while, too.
    let (response, mut up) = send(&client, grpc("WatchCart"), false).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    let mut down = answer(&mut stream, 200);
    let _body = soon("the head", response).await.expect("a head");
    up.send_reset(Reason::CANCEL);
    assert_eq!(soon("the reset", poll_fn(|cx| down.poll_reset(cx))).await.expect("a reset"), Reason::CANCEL);
}

#[tokio::test]
async fn a_swap_closes_the_streams_that_it_denies() {
    let (at, mut served, _called) = server().await;
    let mut world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (response, _up) = send(&client, grpc("WatchCart"), false).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    let mut down = answer(&mut stream, 200);
    down.send_data(Bytes::from_static(b"one"), false).expect("sent");
    let mut body = soon("the head", response).await.expect("a head").into_body();
    assert_eq!(soon("one", body.data()).await.expect("data").expect("data"), "one");
    let (waiting, _up) = send(&client, grpc("GetCart"), false).await;
    let _stream = soon("the stream", served.recv()).await.expect("a stream");
    let mut without = shop();
    without.grpc.clear();
    assert_eq!(world.proxy.state.swap(snapshot(2, &without)), 2);
    assert!(soon("the end", body.data()).await.is_none());
    let trailers = soon("trailers", body.trailers()).await.expect("trailers").expect("a status");
    assert_eq!(trailers["grpc-status"], "7");
    let waiting = soon("an answer", waiting).await.expect("an answer");
    assert_eq!(waiting.headers()["grpc-status"], "7");
    assert_eq!(soon("the reset", poll_fn(|cx| down.poll_reset(cx))).await.expect("a reset"), Reason::CANCEL);
    assert_eq!(world.record().await.error, "revoked");
    let (next, _) = send(&client, request("GET", "/api"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    answer(&mut stream, 204).send_data(Bytes::new(), true).expect("sent");
    assert_eq!(soon("an answer", next).await.expect("an answer").status(), 204, "the connection goes on");
}

#[tokio::test]
async fn a_slow_reader_slows_its_server() {
    let (at, mut served, _called) = server().await;
    let world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (response, _) = send(&client, request("GET", "/api/large"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    let mut down = answer(&mut stream, 200);
    let mut body = soon("the head", response).await.expect("a head").into_body();
    // More than all windows on the way together: it does not fit while nobody reads.
    let size: usize = 4 * 1024 * 1024;
    let sending = tokio::spawn(async move {
        let mut left = size;
        while left > 0 {
            down.reserve_capacity(left.min(16 * 1024));
            let room = poll_fn(|cx| down.poll_capacity(cx)).await.expect("open").expect("open");
            let length = room.min(left);
            left -= length;
            down.send_data(Bytes::from(vec![b'x'; length]), left == 0).expect("sent");
        }
    });
    let mut got = 0;
    while let Some(data) = soon("data", body.data()).await {
        let length = data.expect("data").len();
        got += length;
        if got < 128 * 1024 {
            assert!(!sending.is_finished(), "the server was let run ahead of its reader");
        }
        body.flow_control().release_capacity(length).expect("capacity");
    }
    assert_eq!(got, size);
    soon("the server", sending).await.expect("no panic");
}

#[tokio::test]
async fn an_authority_that_is_not_the_host_is_refused() {
    let (at, mut served, _called) = server().await;
    let world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let mut other = request("GET", "/api");
    other.headers_mut().insert("host", HeaderValue::from_static("admin"));
    let (refused, _) = send(&client, other, true).await;
    assert_eq!(soon("an answer", refused).await.expect("an answer").status(), StatusCode::BAD_REQUEST);
    let (rewritten, _) = send(&client, request("GET", "/x/../api/%61?q=/../z"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    assert_eq!(stream.request.uri(), "http://cart/api/a?q=/../z", "what was judged goes on");
    answer(&mut stream, 204).send_data(Bytes::new(), true).expect("sent");
    soon("an answer", rewritten).await.expect("an answer");
}

/// A gRPC rule matches the bytes as sent, a path rule makes them be rewritten: together they must open nothing.
#[tokio::test]
async fn what_goes_on_is_allowed_itself() {
    let (at, mut served, _called) = server().await;
    let mut rules = shop();
    rules.grpc[0].methods.clear();
    let world = World::start(&rules, at).await;
    let client = connect(&world).await;
    for method in ["..", ".", "%2e%2e", "Any%4Dethod", "x/../../other.v1.Admin/Delete"] {
        let (refused, _) = send(&client, grpc(method), true).await;
        let refused = soon("an answer", refused).await.expect("an answer");
        assert_eq!(refused.headers()["grpc-status"], "7", "{method}");
    }
    let (allowed, _) = send(&client, grpc("AnyMethod"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    assert_eq!(stream.request.uri().path(), "/shop.v1.Cart/AnyMethod");
    answer(&mut stream, 200).send_data(Bytes::new(), true).expect("sent");
    soon("an answer", allowed).await.expect("an answer");
    assert!(served.try_recv().is_err(), "no other stream came");
}

#[tokio::test]
async fn a_server_that_is_not_there_or_speaks_no_http2_is_said_so() {
    let closed = TcpListener::bind("127.0.0.3:0").await.expect("a port").local_addr().expect("bound");
    let world = World::start(&shop(), closed).await;
    let client = connect(&world).await;
    let (response, _) = send(&client, request("GET", "/api"), true).await;
    assert_eq!(soon("an answer", response).await.expect("an answer").status(), 503);
    let (response, _) = send(&client, grpc("GetCart"), true).await;
    let response = soon("an answer", response).await.expect("an answer");
    assert_eq!(
        (response.status(), &response.headers()["grpc-status"]),
        (StatusCode::OK, &"14".parse().expect("14"))
    );
    let old =
        Recorder::start("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    let world = World::start(&shop(), old.at).await;
    let client = connect(&world).await;
    let (response, _) = send(&client, request("GET", "/api"), true).await;
    assert_eq!(soon("an answer", response).await.expect("an answer").status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn draining_lets_open_streams_finish_and_takes_no_new_ones() {
    let (at, mut served, _called) = server().await;
    let world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (response, _) = send(&client, request("GET", "/api"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    let proxy = world.proxy.clone();
    let drained = tokio::spawn(async move { proxy.drain(common::DEADLINE).await });
    soon("GOAWAY", async {
        // The client learns of it from the connection: a new stream is refused by its own end.
        loop {
            match client.clone().ready().await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break assert!(error.is_go_away(), "{error}"),
            }
        }
    })
    .await;
    answer(&mut stream, 200).send_data(Bytes::from_static(b"late"), true).expect("sent");
    let response = soon("an answer", response).await.expect("an answer");
    assert_eq!(text(response.into_body()).await, "late");
    assert_eq!(soon("draining", drained).await.expect("no panic"), 0, "nothing was cut");
}

#[tokio::test]
async fn a_span_takes_its_place_between_its_parent_and_the_server() {
    let (at, mut served, _called) = server().await;
    let mut world = World::sampled(&shop(), at, Sampler::parse(None, None).expect("the default")).await;
    let client = connect(&world).await;
    let mut call = grpc("GetCart");
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    call.headers_mut().insert("traceparent", HeaderValue::from_static(parent));
    call.headers_mut().insert("baggage", HeaderValue::from_static("k=v"));
    let (response, _) = send(&client, call, true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    let forwarded = stream.request.headers()["traceparent"].to_str().expect("text").to_owned();
    assert_eq!(stream.request.headers()["baggage"], "k=v");
    answer(&mut stream, 200).send_data(Bytes::new(), true).expect("sent");
    soon("an answer", response).await.expect("an answer");
    let record = world.record().await;
    let span = sluice_proxy::record::hex(&record.span_id);
    assert_eq!(forwarded, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01"));
    assert_eq!(sluice_proxy::record::hex(&record.parent_span_id), "00f067aa0ba902b7");
}
