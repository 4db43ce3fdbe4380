//! Attacks, as an enemy would send them: raw bytes and raw frames, and what of them reaches the server.

mod common;

use bytes::Bytes;
use common::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Served, block, connect, first,
    frame, raw_http2, server,
};
use common::{OK, Recorder, Rules, World, denying, header, http, shop, soon};
use http::{Request, Response, StatusCode};
use sluice_policy::{HeaderTest, Mode, PathMatch};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://cart{path}")).body(()).expect("a request")
}

/// An allowed request goes through, whatever was sent before.
async fn still_serves(world: &World, served: &mut mpsc::Receiver<Served>) {
    let client = connect(world).await;
    let mut ready = soon("a free stream", client.ready()).await.expect("the connection lives");
    let (answer, _) = ready.send_request(post("/api/v1/checkout"), true).expect("sent");
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    assert_eq!(stream.request.uri().path(), "/api/v1/checkout", "nothing of the attack before it");
    stream.respond.send_response(Response::new(()), true).expect("sent");
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn framing_that_servers_read_differently_reaches_nobody() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let head = "POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\n";
    for rest in [
        "Content-Length: +6\r\n\r\nGET / ",
        "Content-Length: 6, 6\r\n\r\nGET / ",
        "Content-Length: 0x6\r\n\r\nGET / ",
        "Content-Length: 6\r\nContent-Length: 6\r\n\r\nGET / ",
        "Content-Length:\r\n\r\nGET / ",
        "Content-Length: 99999999999999999999\r\n\r\n",
        "Content-Length: 6\r\n content-length: 0\r\n\r\nGET / ",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chun\0ked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Connection: host\r\n\r\n",
        "Connection: close, content-length\r\nContent-Length: 6\r\n\r\nGET / ",
        ": x\r\n\r\n",
        "\r\r\n\r\n",
    ] {
        let mut client = world.connect().await;
        client.send(format!("{head}{rest}")).await;
        let answer = String::from_utf8(client.rest().await.expect("an answer, then the end")).expect("text");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{rest:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{rest:?}: {answer}");
    }
    for line in [
        "GET http://admin/api HTTP/1.1",
        "GET http://cart@admin/api HTTP/1.1",
        "GET http:///api HTTP/1.1",
        "GET ftp://cart/api HTTP/1.1",
        "GET api HTTP/1.1",
        "GET * HTTP/1.1",
        "GET  /api HTTP/1.1",
    ] {
        let mut client = world.connect().await;
        client.send(format!("{line}\r\nHost: cart\r\n\r\n")).await;
        let answer = String::from_utf8(client.rest().await.expect("an answer, then the end")).expect("text");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{line}: {answer}");
    }
    assert_eq!(server.seen(), "");
}

#[tokio::test]
async fn a_refused_body_is_never_a_request() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let inner = "GET /api/inner HTTP/1.1\r\nHost: cart\r\n\r\n";
    let outer = "GET /api/outer HTTP/1.1\r\nHost: cart\r\n\r\n";
    let mut client = world.connect().await;
    let length = inner.len();
    client
        .send(format!("POST /no HTTP/1.1\r\nHost: cart\r\nContent-Length: {length}\r\n\r\n{inner}{outer}"))
        .await;
    assert!(client.answer().await.starts_with("HTTP/1.1 403 "));
    assert_eq!(client.answer().await, OK);
    assert_eq!(server.seen(), outer, "the body is skipped, not served");
    // Where its end cannot be known for sure, nothing after it is read at all.
    for framing in
        ["Transfer-Encoding: chunked", "Content-Length: 70000", "Expect: 100-continue\r\nContent-Length: 5"]
    {
        let mut client = world.connect().await;
        client.send(format!("POST /no HTTP/1.1\r\nHost: cart\r\n{framing}\r\n\r\n{inner}{outer}")).await;
        let answers = String::from_utf8(client.rest().await.expect("an answer, then the end")).expect("text");
        assert!(answers.starts_with("HTTP/1.1 403 "), "{framing}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{framing}: {answers}");
    }
    assert_eq!(server.seen(), outer);
}

#[tokio::test]
async fn chunks_are_written_anew() {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the proxy");
        let mut seen = Vec::new();
        while !seen.ends_with(b"X-Sum: 1\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut seen).await.expect("no reset"), 0, "no trailer came");
        }
        stream.write_all(OK.as_bytes()).await.expect("sent");
        seen
    });
    let world = World::start(&shop(), at).await;
    let head = "POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = world.connect().await;
    client.send(format!("{head}00000005;a=\"b;c\"\r\nhello\r\n000;x\r\nX-Sum: 1\r\n\r\n")).await;
    assert_eq!(client.answer().await, OK);
    let seen = soon("the server", seen).await.expect("no panic");
    assert_eq!(String::from_utf8_lossy(&seen), format!("{head}5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"));
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    for body in
        ["5\r\nhello\r\n0\r\nHost: admin\r\n\r\n", "5;\nhello", "g\r\n", "5\r\nhelloworld\r\n", "0\r\n\n"]
    {
        let mut client = world.connect().await;
        client.send(format!("{head}{body}GET /api HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
        let _ = client.rest().await;
        let seen = server.seen();
        assert!(
            !seen.contains("\r\n0\r\n") && !seen.contains("GET"),
            "{body:?}: the server saw an end: {seen}"
        );
    }
}

#[tokio::test]
async fn a_trailer_is_a_header_to_policy() {
    let head = "POST / HTTP/1.1\r\nHost: cart\r\nX-Tenant: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let silent = Recorder::start("").await;
    let world = World::start(&shop(), silent.at).await;
    world.proxy.state.swap(denying(header("x-role", HeaderTest::Present)));
    for trailer in [
        "X-Role: admin",
        "x_role: admin",
        "X-Sum: 1\r\nX-Role: admin",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: admin",
        "Authorization: x",
        "Content-Type: application/grpc",
    ] {
        // With the rest, and after the server has had it.
        for waits in [false, true] {
            let mut client = world.connect().await;
            let before = silent.seen().len();
            let body = "5\r\nhello\r\n";
            client.send(format!("{head}{body}")).await;
            if waits {
                soon("the body", async {
                    while silent.seen().len() < before + head.len() + body.len() {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            }
            client.send(format!("0\r\n{trailer}\r\n\r\n")).await;
            let answer =
                String::from_utf8(client.rest().await.expect("an answer, then the end")).expect("text");
            assert!(answer.starts_with("HTTP/1.1 400 "), "{trailer:?}: {answer}");
            assert!(!silent.seen().contains("\r\n0\r\n"), "{trailer:?}: {}", silent.seen());
        }
    }
    // What an allow asks for must not become ambiguous after the allow.
    let rules = Rules { http: vec![header("x-tenant", HeaderTest::Exact("a".into()))], ..shop() };
    let server = Recorder::start(OK).await;
    for (trailer, passes) in [("X-Tenant: b", false), ("X-Sum: 1", true)] {
        let world = World::start(&rules, server.at).await;
        let mut client = world.connect().await;
        client.send(format!("{head}0\r\n{trailer}\r\n\r\n")).await;
        if passes {
            soon("the trailer", async {
                while !server.seen().ends_with(&format!("0\r\n{trailer}\r\n\r\n")) {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        } else {
            let _ = client.rest().await;
            assert!(!server.seen().contains("\r\n0\r\n"), "{trailer:?}: {}", server.seen());
        }
    }
}

#[tokio::test]
async fn what_was_asked_before_a_half_close_is_answered() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n");
    let mut client = world.connect().await;
    client.send([get("/api/1"), get("/no"), get("/api/2"), get("/api/3")].concat()).await;
    client.stream.shutdown().await.expect("half-closed");
    let answers = String::from_utf8(client.rest().await.expect("no reset")).expect("text");
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "403", "200", "200"], "{answers}");
    assert_eq!(server.seen(), [get("/api/1"), get("/api/2"), get("/api/3")].concat());
}

#[tokio::test]
async fn an_audited_policy_changes_no_path() {
    let request = "GET /x/../api/%61?q HTTP/1.1\r\nHost: cart\r\n\r\n";
    for (mode, seen) in
        [(Mode::Audit, request.to_owned()), (Mode::Enforce, request.replace("/x/../api/%61", "/api/a"))]
    {
        let server = Recorder::start(OK).await;
        let world = World::start(&Rules { mode, ..shop() }, server.at).await;
        assert_eq!(world.connect().await.ask(request).await, OK);
        assert_eq!(server.seen(), seen);
    }
}

#[tokio::test]
async fn an_audited_policy_lets_an_unreadable_answer_pass() {
    let request = "GET /api HTTP/1.1\r\nHost: cart\r\n\r\n";
    for answer in [
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    ] {
        for (mode, passes) in [(Mode::Audit, true), (Mode::Enforce, false)] {
            let server = Recorder::start(answer).await;
            let world = World::start(&Rules { mode, ..shop() }, server.at).await;
            let mut client = world.connect().await;
            client.send(request).await;
            let mut got = vec![0; answer.len()];
            soon("an answer", client.stream.read_exact(&mut got)).await.expect("as long as that");
            assert_eq!(got == answer.as_bytes(), passes, "{mode:?} {}", String::from_utf8_lossy(&got));
            if !passes {
                assert!(got.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&got));
            }
        }
    }
}

#[tokio::test]
async fn http2_heads_that_become_two_requests_elsewhere_reach_nobody() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let start =
        [(":method", "POST"), (":scheme", "http"), (":path", "/api/v1/checkout"), (":authority", "cart")];
    for more in [
        &[("transfer-encoding", "chunked")][..],
        &[("connection", "close")],
        &[("upgrade", "h2c")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "close")],
        &[("te", "chunked")],
        &[("Host", "cart")],
        &[("host", "admin")],
        &[("host", "cart"), ("host", "cart")],
        &[(":path", "/admin")],
        &[(":method", "DELETE")],
        &[("x", "y"), (":authority", "admin")],
        &[(":protocol", "websocket")],
        &[(":status", "200")],
        &[("content-length", "5"), ("content-length", "6")],
        &[("content-length", "+5")],
        &[("x", "a\r\nContent-Length: 5")],
        &[("x", "a\0b")],
        &[("x y", "z")],
        &[("", "z")],
    ] {
        let fields: Vec<_> = start.iter().chain(more).copied().collect();
        let mut stream = raw_http2(&world).await;
        stream.write_all(&frame(HEADERS, END_HEADERS, 1, &block(&fields))).await.expect("the proxy reads");
        // An answer of ours, a reset, or the end of the connection.
        let _ = first(&mut stream, &[HEADERS, RST_STREAM, GOAWAY]).await;
        assert!(served.try_recv().is_err(), "{more:?}");
    }
    still_serves(&world, &mut served).await;
}

#[tokio::test]
async fn an_http2_path_goes_on_as_it_was_judged() {
    let (at, mut served) = server().await;
    let rules = Rules { http: vec![http(&["GET"], Some(PathMatch::exact("/")))], ..shop() };
    let world = World::start(&rules, at).await;
    for (path, uri) in [("/", "http://cart/"), ("?x=y", "http://cart/?x=y"), ("/#/admin", "http://cart/")] {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "cart")];
        let mut stream = raw_http2(&world).await;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        stream.write_all(&head).await.expect("the proxy reads");
        let mut got = soon("the stream", served.recv()).await.expect("a stream");
        assert_eq!(got.request.uri(), uri, "{path}");
        got.respond.send_response(Response::new(()), true).expect("sent");
    }
    for path in ["admin", "*", "//", "/..", "/%2e%2e", "http://cart/", "/;x"] {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "cart")];
        let mut stream = raw_http2(&world).await;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        stream.write_all(&head).await.expect("the proxy reads");
        let _ = first(&mut stream, &[HEADERS, RST_STREAM, GOAWAY]).await;
        assert!(served.try_recv().is_err(), "{path}");
    }
}

#[tokio::test]
async fn an_http2_body_that_is_not_its_length_never_completes() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    for body in [&b"four"[..], b"sixsix"] {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/api/v1/checkout"),
            (":authority", "cart"),
            ("content-length", "5"),
        ];
        let mut stream = raw_http2(&world).await;
        stream.write_all(&frame(HEADERS, END_HEADERS, 1, &block(&fields))).await.expect("the proxy reads");
        let mut got = soon("the stream", served.recv()).await.expect("a stream");
        stream.write_all(&frame(DATA, END_STREAM, 1, body)).await.expect("the proxy reads");
        let ended = soon("the end", async {
            loop {
                match got.request.body_mut().data().await {
                    Some(Ok(_)) => {}
                    other => break other,
                }
            }
        })
        .await;
        assert!(matches!(ended, Some(Err(_))), "{body:?}: {ended:?}");
    }
}

#[tokio::test]
async fn refused_uploads_leave_the_connection_its_window() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    // Many times the connection's window, refused unread.
    for _ in 0..100 {
        let mut ready = soon("a free stream", client.clone().ready()).await.expect("the connection lives");
        let (answer, mut up) = ready.send_request(post("/no"), false).expect("sent");
        up.send_data(Bytes::from(vec![b'x'; 60_000]), true).expect("queued");
        let answer = soon("a denial", answer).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    }
    let size = 3 * 1024 * 1024;
    let mut ready = soon("a free stream", client.ready()).await.expect("the connection lives");
    let (answer, mut up) = ready.send_request(post("/api/v1/checkout"), false).expect("sent");
    up.send_data(Bytes::from(vec![b'x'; size]), true).expect("queued");
    let mut got = soon("the stream", served.recv()).await.expect("the first that came");
    let mut length = 0;
    while let Some(data) = soon("data", got.request.body_mut().data()).await {
        let data = data.expect("data");
        length += data.len();
        got.request.body_mut().flow_control().release_capacity(data.len()).expect("capacity");
    }
    assert_eq!(length, size);
    got.respond.send_response(Response::new(()), true).expect("sent");
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn floods_end_their_connection_and_no_other() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    // CONTINUATION without end (CVE-2024-27316).
    let mut stream = raw_http2(&world).await;
    let mut more = frame(HEADERS, 0, 1, &block(&[(":method", "GET")]));
    for _ in 0..64 {
        more.extend(frame(CONTINUATION, 0, 1, &block(&[("a", "b")]).repeat(3000)));
    }
    let sent = stream.write_all(&more).await;
    // Fails by its deadline if the connection goes on.
    if sent.is_ok() {
        let _ = first(&mut stream, &[GOAWAY]).await;
    }
    // Opened and cancelled, again and again (CVE-2023-44487).
    let mut stream = raw_http2(&world).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/api"), (":authority", "cart")];
    let mut flood = Vec::new();
    for number in 0..20_000 {
        let id = number * 2 + 1;
        flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &block(&fields)));
        flood.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
    }
    let sent = stream.write_all(&flood).await;
    if sent.is_ok() {
        let _ = first(&mut stream, &[GOAWAY]).await;
    }
    drop(stream);
    soon("every flow's end", async {
        while world.proxy.state.open_flows() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    while served.try_recv().is_ok() {}
    still_serves(&world, &mut served).await;
}
