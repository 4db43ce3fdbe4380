//! Attacks on what HTTP/2 adds: `:authority`, trailers of frames, windows, GOAWAY and interim answers.

mod common;

use bytes::Bytes;
use common::http2::{
    END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, block, connect, first, frame, raw_http2, server,
};
use common::{CLIENT, Rules, World, denying, header, shop, soon};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use sluice_policy::{GrpcMatch, HeaderTest, Mode};
use sluice_proxy::limits::{H2_STREAMS, INTERIM_ANSWERS};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://cart{path}")).body(()).expect("a request")
}

type Answering = (h2::client::ResponseFuture, SendStream<Bytes>);

async fn send(client: &SendRequest<Bytes>, request: Request<()>, whole: bool) -> Answering {
    let mut ready = soon("a free stream", client.clone().ready()).await.expect("the connection lives");
    ready.send_request(request, whole).expect("sent")
}

#[tokio::test]
async fn a_deny_on_the_host_holds_for_authority() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    world.proxy.state.swap(denying(header("host", HeaderTest::Exact("admin".into()))));
    for hosts in [
        &[(":authority", "admin")][..],
        &[("host", "admin")],
        &[(":authority", "admin"), ("host", "admin")],
        &[(":authority", "cart"), ("host", "admin")],
    ] {
        let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/")];
        fields.extend(hosts);
        let mut stream = raw_http2(&world).await;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        stream.write_all(&head).await.expect("the proxy reads");
        // An answer of ours: the server, which says nothing, did not get the stream before it.
        assert_eq!(first(&mut stream, &[HEADERS, RST_STREAM, GOAWAY]).await, Some(HEADERS), "{hosts:?}");
        assert!(served.try_recv().is_err(), "{hosts:?}");
    }
    let client = connect(&world).await;
    let (answer, _) = send(&client, request("GET", "/"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    stream.respond.send_response(Response::new(()), true).expect("sent");
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::OK);
}

/// What the server gets of a body that ends with this trailer: the trailers, or that it never ended.
async fn trailed(name: &'static str) -> Result<Option<HeaderMap>, h2::Error> {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    world.proxy.state.swap(denying(header("x-role", HeaderTest::Present)));
    let client = connect(&world).await;
    let (_answer, mut up) = send(&client, request("POST", "/"), false).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    up.send_data(Bytes::from_static(b"hello"), false).expect("sent");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
    up.send_trailers(trailers).expect("sent");
    let body = stream.request.body_mut();
    while let Some(data) = soon("data", body.data()).await {
        assert_eq!(data?, "hello");
    }
    soon("trailers", body.trailers()).await
}

#[tokio::test]
async fn a_trailer_is_a_header_to_policy() {
    for name in ["x-role", "x_role", "content-length", "host", "authorization", "content-type", "trailer"] {
        let error = trailed(name).await.expect_err(name);
        assert!(error.is_reset(), "{name}: {error}");
    }
    let trailers = trailed("x-more").await.expect("no reset").expect("trailers");
    assert_eq!((trailers.len(), &trailers["x-more"]), (2, &HeaderValue::from_static("1")));
}

#[tokio::test]
async fn a_grpc_rule_opens_no_path_beside_its_service() {
    let grpc = vec![GrpcMatch::grpc("shop.v1.Cart", [])];
    let (at, mut served) = server().await;
    let world = World::start(&Rules { http: Vec::new(), grpc, ..shop() }, at).await;
    let client = connect(&world).await;
    let call = |path: &str| {
        let mut call = request("POST", path);
        call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        call
    };
    for method in ["..", "%2e%2e", "..%2fadmin", "..%5cadmin", "..;x", "x%2f..%2f..%2fadmin", "%47etCart"] {
        let (answer, _) = send(&client, call(&format!("/shop.v1.Cart/{method}")), true).await;
        let answer = soon("a denial", answer).await.expect("an answer");
        assert_eq!(answer.headers()["grpc-status"], "7", "{method}");
        assert!(served.try_recv().is_err(), "{method}");
    }
    let (answer, _) = send(&client, call("/shop.v1.Cart/GetCart"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    stream.respond.send_response(Response::new(()), true).expect("sent");
    soon("an answer", answer).await.expect("an answer");
}

/// A server that holds the first stream of each connection open, answers the others, and has said at the first that
/// it wants to end.
async fn leaving_server() -> (SocketAddr, mpsc::Receiver<SendStream<Bytes>>) {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let (bodies, held) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let bodies = bodies.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let mut leaving = false;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let body = respond.send_response(Response::new(()), leaving).expect("sent");
                    if !leaving {
                        leaving = true;
                        bodies.send(body).await.expect("the test listens");
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    (at, held)
}

#[tokio::test]
async fn a_servers_goaway_is_told_and_its_open_stream_goes_on() {
    let (at, mut held) = leaving_server().await;
    let world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (answer, _) = send(&client, request("GET", "/api/watch"), true).await;
    let mut open = soon("the stream", held.recv()).await.expect("a stream");
    let mut body = soon("the head", answer).await.expect("a head").into_body();
    soon("GOAWAY", async {
        loop {
            let mut ready = match client.clone().ready().await {
                Ok(ready) => ready,
                Err(error) => return assert!(error.is_go_away(), "{error}"),
            };
            let (answer, _) = ready.send_request(request("GET", "/api"), true).expect("sent");
            match answer.await {
                // The server has not come to it yet.
                Ok(answer) => assert_eq!(answer.status(), StatusCode::OK, "no answer in the server's place"),
                Err(error) => {
                    let refused = error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away();
                    return assert!(refused, "the client may not send it again: {error}");
                }
            }
        }
    })
    .await;
    open.send_data(Bytes::from_static(b"late"), true).expect("sent");
    assert_eq!(soon("data", body.data()).await.expect("data").expect("data"), "late");
    assert!(soon("the end", body.data()).await.is_none());
    let (answer, _) = send(&connect(&world).await, request("GET", "/api/watch"), true).await;
    assert_eq!(soon("the head", answer).await.expect("a head").status(), StatusCode::OK);
}

/// Sends as long as the window lets it, and counts.
async fn pour(mut body: SendStream<Bytes>, count: Arc<AtomicUsize>) {
    loop {
        body.reserve_capacity(16 * 1024);
        let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { return };
        if body.send_data(Bytes::from(vec![b'x'; room]), false).is_err() {
            return;
        }
        count.fetch_add(room, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_up_no_other() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let stream = world.connect_from(CLIENT).await;
    // As gRPC clients do: the connection's window is no limit.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(64 * 1024 * 1024).initial_window_size(65_535);
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await.expect("a handshake");
    tokio::spawn(async move { drop(connection.await) });
    let mut unread: Vec<RecvStream> = Vec::new();
    let mut counts = Vec::new();
    for _ in 1..H2_STREAMS {
        let (answer, _) = send(&client, request("GET", "/api/large"), true).await;
        let mut stream = soon("the stream", served.recv()).await.expect("a stream");
        let body = stream.respond.send_response(Response::new(()), false).expect("sent");
        unread.push(soon("the head", answer).await.expect("a head").into_body());
        let count = Arc::new(AtomicUsize::new(0));
        counts.push(count.clone());
        tokio::spawn(pour(body, count));
    }
    // The client's window of each: the relay takes no more of the server, the rewriting path keeps some.
    soon("full windows", async {
        while counts.iter().any(|count| count.load(Ordering::Relaxed) < 65_535) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (answer, _) = send(&client, request("GET", "/api/small"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    let mut body = stream.respond.send_response(Response::new(()), false).expect("sent");
    body.send_data(Bytes::from_static(b"small"), true).expect("sent");
    let mut body = soon("the head", answer).await.expect("a head").into_body();
    assert_eq!(soon("data", body.data()).await.expect("data").expect("data"), "small");
}

#[tokio::test]
async fn interim_answers_end() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let (mut answer, _) = send(&client, request("GET", "/api"), true).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    let endless = tokio::spawn(async move {
        // The h2 crate queues them on a stream that is gone, too: the reset is looked for.
        while poll_fn(|cx| Poll::Ready(stream.respond.poll_reset(cx))).await.is_pending() {
            let interim = Response::builder().status(103).header("x", "y").body(()).expect("a response");
            stream.respond.send_informational(interim).expect("queued");
            tokio::task::yield_now().await;
        }
    });
    let mut interims = 0;
    while let Some(interim) = soon("an answer", poll_fn(|cx| answer.poll_informational(cx))).await {
        assert_eq!(interim.expect("an interim answer").status(), StatusCode::EARLY_HINTS);
        interims += 1;
        assert!(interims <= INTERIM_ANSWERS);
    }
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::BAD_GATEWAY);
    soon("the reset", endless).await.expect("no panic");
}

#[tokio::test]
async fn an_audited_policy_changes_nothing() {
    for (mode, uri) in [(Mode::Audit, "http://cart/x/../api/%61?q"), (Mode::Enforce, "http://cart/api/a?q")] {
        let (at, mut served) = server().await;
        let world = World::start(&Rules { mode, ..shop() }, at).await;
        let client = connect(&world).await;
        let (_answer, _) = send(&client, request("GET", "/x/../api/%61?q"), true).await;
        let stream = soon("the stream", served.recv()).await.expect("a stream");
        assert_eq!(stream.request.uri(), uri, "{mode:?}");
    }
    // Odd, but the server's to judge.
    let (at, mut served) = server().await;
    let world = World::start(&Rules { mode: Mode::Audit, ..shop() }, at).await;
    let client = connect(&world).await;
    let mut odd = request("GET", "/api");
    odd.headers_mut().insert("host", HeaderValue::from_static("other"));
    let (_answer, _) = send(&client, odd, true).await;
    let stream = soon("the stream", served.recv()).await.expect("a stream");
    assert_eq!(stream.request.uri(), "http://cart/api");
    assert_eq!(stream.request.headers()["host"], "other");
}
