//! Extended CONNECT (RFC 8441) and CONNECT over HTTP/2: only under a rule that names them, data both ways with
//! half-close, nothing before the server agrees, and gone with their permission. On both paths of HTTP/2.

mod common;

use bytes::Bytes;
use common::http2::{
    END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, Served, block, connect, first, frame,
    raw_http2, reset_of, server, upgrading_server,
};
use common::{Rules, World, denying, http, shop, snapshot, soon};
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use sluice_policy::{HostMatch, HttpMatch, Mode, NameMatch, PathMatch};
use std::future::poll_fn;
use std::task::Poll;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

const PROTOCOL_ERROR: u32 = 1;

/// The shop's rules, WebSockets at /api/chat, and a tunnel to db.shop.
fn websockets() -> Rules {
    let chat = HttpMatch {
        upgrades: vec!["websocket".into()],
        ..http(&["GET"], Some(PathMatch::prefix("/api/chat")))
    };
    let names = vec![HostMatch::Name(NameMatch::Exact("db.shop".into()))];
    let tunnel = HttpMatch { hosts: names, ..http(&["CONNECT"], None) };
    let mut rules = shop();
    rules.http.extend([chat, tunnel]);
    rules
}

fn ask(path: &str) -> Request<()> {
    let request = Request::builder().method("CONNECT").uri(format!("http://cart{path}"));
    request.extension(Protocol::from_static("websocket")).body(()).expect("a request")
}

fn tunnel(to: &str) -> Request<()> {
    Request::builder().method("CONNECT").uri(to).body(()).expect("a request")
}

/// Waits until the proxy has said its settings, and tells whether it offers to extend CONNECT.
async fn offered(client: &SendRequest<Bytes>) -> bool {
    // Any answer comes after them.
    let request = Request::get("http://cart/nowhere").body(()).expect("a request");
    let (answer, _) = client.clone().send_request(request, true).expect("sent");
    assert_eq!(soon("a denial", answer).await.expect("an answer").status(), StatusCode::FORBIDDEN);
    client.is_extended_connect_protocol_enabled()
}

async fn send(client: &SendRequest<Bytes>, request: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
    let mut ready = soon("a free stream", client.clone().ready()).await.expect("the connection lives");
    ready.send_request(request, false).expect("sent")
}

async fn next(served: &mut mpsc::Receiver<Served>) -> Served {
    soon("the stream", served.recv()).await.expect("a stream")
}

fn agree(stream: &mut Served) -> SendStream<Bytes> {
    stream.respond.send_response(Response::new(()), false).expect("sent")
}

async fn hear(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    loop {
        let data = soon("data", body.data()).await;
        if let Some(Ok(data)) = &data {
            body.flow_control().release_capacity(data.len()).expect("capacity");
        }
        if data.as_ref().is_none_or(|data| data.as_ref().is_ok_and(|data| !data.is_empty()) || data.is_err())
        {
            return data;
        }
    }
}

async fn exact(body: &mut RecvStream, expected: &str) {
    assert_eq!(hear(body).await.expect("data").expect("no reset"), expected);
}

/// How the stream ends: `None` in order.
async fn end_of(body: &mut RecvStream) -> Option<Reason> {
    loop {
        match hear(body).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.reason(),
            None => return soon("trailers", body.trailers()).await.err().and_then(|error| error.reason()),
        }
    }
}

#[tokio::test]
async fn a_websocket_passes_over_http2_under_a_rule_that_names_it() {
    let (at, mut served) = upgrading_server().await;
    let mut world = World::start(&websockets(), at).await;
    let client = connect(&world).await;
    assert!(offered(&client).await);
    world.record().await;
    let (answer, mut up) = send(&client, ask("/api/chat?room=1")).await;
    let mut stream = next(&mut served).await;
    assert_eq!(stream.request.uri(), "http://cart/api/chat?room=1");
    assert_eq!(stream.request.method(), "CONNECT");
    let protocol = stream.request.extensions().get::<Protocol>().map(|name| name.as_str().to_owned());
    assert_eq!(protocol.as_deref(), Some("websocket"));
    let mut down = agree(&mut stream);
    let mut heard = soon("the answer", answer).await.expect("an answer").into_body();
    up.send_data("hello".into(), false).expect("sent");
    exact(stream.request.body_mut(), "hello").await;
    down.send_data("HELLO".into(), false).expect("sent");
    exact(&mut heard, "HELLO").await;
    // The server has said all; the client has not.
    down.send_data(Bytes::new(), true).expect("sent");
    assert!(hear(&mut heard).await.is_none());
    up.send_data("still here".into(), false).expect("sent");
    exact(stream.request.body_mut(), "still here").await;
    up.send_data(Bytes::new(), true).expect("sent");
    assert_eq!(end_of(stream.request.body_mut()).await, None);
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.status, record.rule.as_str()), ("allow", 200, "frontend"));
    assert_eq!((record.method.as_str(), record.path.as_str()), ("CONNECT", "/api/chat"));
    assert_eq!((record.bytes_up, record.bytes_down, record.error.as_str()), (15, 5, ""));
}

#[tokio::test]
async fn nothing_of_a_tunnel_goes_on_before_the_server_agrees() {
    let (at, mut served) = upgrading_server().await;
    let world = World::start(&websockets(), at).await;
    for request in [|| ask("/api/chat"), || tunnel("db.shop:5432")] {
        for agrees in [true, false] {
            let client = connect(&world).await;
            assert!(offered(&client).await);
            let (answer, mut up) = send(&client, request()).await;
            // What a server that refuses would take for its next request, if it speaks HTTP/1.1 behind.
            up.send_data("GET /admin HTTP/1.1\r\n\r\n".into(), false).expect("sent");
            let mut stream = next(&mut served).await;
            // A later stream of the same connections, all of it: what came before it would be here.
            let later = Request::get("http://cart/api").body(()).expect("a request");
            let (later, _) = client.clone().send_request(later, true).expect("sent");
            next(&mut served).await.respond.send_response(Response::new(()), true).expect("sent");
            soon("an answer", later).await.expect("an answer");
            let early = poll_fn(|cx| Poll::Ready(stream.request.body_mut().poll_data(cx))).await;
            assert!(early.is_pending(), "{early:?}");
            if agrees {
                let _down = agree(&mut stream);
                exact(stream.request.body_mut(), "GET /admin HTTP/1.1\r\n\r\n").await;
                continue;
            }
            let refused = Response::builder().status(404).body(()).expect("a response");
            let mut down = stream.respond.send_response(refused, false).expect("sent");
            // It has the request whole, and empty.
            assert!(hear(stream.request.body_mut()).await.is_none());
            down.send_data("no".into(), true).expect("sent");
            let answer = soon("the answer", answer).await.expect("an answer");
            assert_eq!(answer.status(), StatusCode::NOT_FOUND);
            exact(&mut answer.into_body(), "no").await;
            let _ = up.send_data("more".into(), true);
            assert_eq!(end_of(stream.request.body_mut()).await, None);
        }
    }
}

#[tokio::test]
async fn a_server_that_takes_none_is_told_of_at_once_and_the_rest_goes_on() {
    let (at, mut served) = server().await;
    let mut world = World::start(&websockets(), at).await;
    let client = connect(&world).await;
    assert!(offered(&client).await);
    world.record().await;
    for _ in 0..2 {
        let (answer, _up) = send(&client, ask("/api/chat")).await;
        let answer = soon("an answer", answer).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED);
        let record = world.record().await;
        assert_eq!((record.verdict.as_str(), record.error.as_str()), ("allow", "no_extended_connect"));
    }
    let request = Request::get("http://cart/api").body(()).expect("a request");
    let (answer, _) = client.clone().send_request(request, true).expect("sent");
    let mut stream = next(&mut served).await;
    assert_eq!(stream.request.uri(), "http://cart/api", "and nothing before it");
    stream.respond.send_response(Response::new(()), true).expect("sent");
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn it_is_offered_only_where_a_rule_may_let_it_through() {
    let (at, mut served) = upgrading_server().await;
    let world = World::start(&shop(), at).await;
    assert!(!offered(&connect(&world).await).await);
    // And who asks all the same says what no message says (RFC 8441 §3).
    let mut stream = raw_http2(&world).await;
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/api/chat"),
        (":authority", "cart"),
    ];
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &block(&fields))).await.expect("the proxy reads");
    assert_eq!(reset_of(&mut stream, 1).await, Some(PROTOCOL_ERROR));
    assert!(served.try_recv().is_err());
    // Where only an audited policy governs, nothing changes.
    let world = World::start(&Rules { mode: Mode::Audit, ..shop() }, at).await;
    let client = connect(&world).await;
    let request = Request::get("http://cart/nowhere").body(()).expect("a request");
    let (answer, _) = client.clone().send_request(request, true).expect("sent");
    next(&mut served).await.respond.send_response(Response::new(()), true).expect("sent");
    soon("an answer", answer).await.expect("an answer");
    assert!(client.is_extended_connect_protocol_enabled());
    let (answer, _up) = send(&client, ask("/elsewhere")).await;
    let _down = agree(&mut next(&mut served).await);
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::OK);
}

/// What a request says, and how its stream ends: with this error code, or with an answer.
type Row = (&'static str, &'static [(&'static str, &'static str)], Option<u32>);

/// RFC 8441 §4 and RFC 9113 §8.5, of those who were offered to extend CONNECT.
const MALFORMED: &[Row] = &[
    ("another method", &[("m", "GET"), ("p", "websocket"), ("s", "http"), ("t", "/api/chat")], Some(1)),
    ("no :scheme", &[("m", "CONNECT"), ("p", "websocket"), ("t", "/api/chat")], Some(1)),
    ("no :path", &[("m", "CONNECT"), ("p", "websocket"), ("s", "http")], Some(1)),
    ("an empty :path", &[("m", "CONNECT"), ("p", "websocket"), ("s", "http"), ("t", "")], Some(1)),
    ("neither", &[("m", "CONNECT"), ("p", "websocket")], Some(1)),
    (
        "twice",
        &[("m", "CONNECT"), ("p", "websocket"), ("p", "websocket"), ("s", "http"), ("t", "/api/chat")],
        Some(1),
    ),
    (
        "after a field",
        &[("m", "CONNECT"), ("s", "http"), ("t", "/api/chat"), ("x-a", "b"), ("p", "websocket")],
        Some(1),
    ),
    ("plain, with :scheme", &[("m", "CONNECT"), ("s", "http")], Some(1)),
    ("plain, with :path", &[("m", "CONNECT"), ("t", "/api/chat")], Some(1)),
    (
        "beside Upgrade",
        &[("m", "CONNECT"), ("p", "websocket"), ("s", "http"), ("t", "/api/chat"), ("upgrade", "websocket")],
        Some(1),
    ),
    // Answered by us: 400 or 403.
    ("an empty name", &[("m", "CONNECT"), ("p", ""), ("s", "http"), ("t", "/api/chat")], None),
    ("no name", &[("m", "CONNECT"), ("p", "websocket, h2c"), ("s", "http"), ("t", "/api/chat")], None),
    ("a blank", &[("m", "CONNECT"), ("p", "websocket "), ("s", "http"), ("t", "/api/chat")], None),
    ("unknown", &[("m", "CONNECT"), ("p", "webtransport"), ("s", "http"), ("t", "/api/chat")], None),
    ("another path", &[("m", "CONNECT"), ("p", "websocket"), ("s", "http"), ("t", "/api/items")], None),
    (
        "around the path",
        &[("m", "CONNECT"), ("p", "websocket"), ("s", "http"), ("t", "/api/chat/../items")],
        None,
    ),
    ("another scheme", &[("m", "CONNECT"), ("p", "websocket"), ("s", "ftp"), ("t", "/api/chat")], None),
    (
        "a length",
        &[("m", "CONNECT"), ("p", "websocket"), ("s", "http"), ("t", "/api/chat"), ("content-length", "5")],
        None,
    ),
    ("a tunnel to another host", &[("m", "CONNECT")], None),
    ("a tunnel with a length", &[("m", "CONNECT"), ("content-length", "0")], None),
    ("lower case", &[("m", "connect"), ("p", "websocket"), ("s", "http"), ("t", "/api/chat")], Some(1)),
];

#[tokio::test]
async fn what_is_no_extended_connect_reaches_nobody() {
    let (at, mut served) = upgrading_server().await;
    let mut world = World::start(&websockets(), at).await;
    for (what, fields, expected) in MALFORMED {
        let mut stream = raw_http2(&world).await;
        let long = |name: &'static str| match name {
            "m" => ":method",
            "p" => ":protocol",
            "s" => ":scheme",
            "t" => ":path",
            other => other,
        };
        let mut all: Vec<_> = vec![(":authority", "cart")];
        all.extend(fields.iter().map(|(name, value)| (long(name), *value)));
        stream.write_all(&frame(HEADERS, END_HEADERS, 1, &block(&all))).await.expect("the proxy reads");
        assert_eq!(reset_of(&mut stream, 1).await, *expected, "{what}");
        if expected.is_none() {
            let record = world.record().await;
            assert!(record.verdict == "deny" && [400, 403].contains(&record.status), "{what}: {record:?}");
        }
        assert!(served.try_recv().is_err(), "{what}");
        while world.records.try_recv().is_ok() {}
    }
    // A setting that is neither yes nor no (RFC 8441 §3).
    let mut stream = raw_http2(&world).await;
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 8, 0, 0, 0, 2])).await.expect("the proxy reads");
    assert_eq!(first(&mut stream, &[GOAWAY, HEADERS, RST_STREAM]).await, Some(GOAWAY));
}

#[tokio::test]
async fn a_rule_on_methods_takes_it_for_get() {
    let (at, mut served) = upgrading_server().await;
    let world = World::start(&websockets(), at).await;
    let upgrades = || HttpMatch { upgrades: vec!["websocket".into()], ..HttpMatch::default() };
    let with = |item: HttpMatch| snapshot(2, &Rules { http: vec![item, http(&["GET"], None)], ..shop() });
    let post = with(HttpMatch { methods: http(&["POST"], None).methods, ..upgrades() });
    let any = with(upgrades());
    let connect_alone = with(http(&["CONNECT"], None));
    for (what, policy, passes) in [
        ("any method", any, true),
        ("POST", post, false),
        ("CONNECT, which is a plain one", connect_alone, false),
        ("a deny of GET", denying(http(&["GET"], None)), false),
        ("a deny of CONNECT", denying(http(&["CONNECT"], None)), false),
        ("a deny of WebSockets", denying(upgrades()), false),
    ] {
        // Offered under the first policy: it is not taken back, and judged all the same.
        world.proxy.state.swap(snapshot(1, &websockets()));
        let client = connect(&world).await;
        assert!(offered(&client).await);
        world.proxy.state.swap(policy);
        let (answer, _up) = send(&client, ask("/api/chat")).await;
        if passes {
            let _down = agree(&mut next(&mut served).await);
            assert_eq!(
                soon("an answer", answer).await.expect("an answer").status(),
                StatusCode::OK,
                "{what}"
            );
        } else {
            let status = soon("an answer", answer).await.expect("an answer").status();
            assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
            assert!(served.try_recv().is_err(), "{what}");
        }
    }
}

#[tokio::test]
async fn a_tunnel_has_data_alone() {
    let (at, mut served) = upgrading_server().await;
    let world = World::start(&websockets(), at).await;
    let trailers =
        || HeaderMap::from_iter([(http::HeaderName::from_static("x"), HeaderValue::from_static("y"))]);
    for from_server in [false, true] {
        let client = connect(&world).await;
        assert!(offered(&client).await);
        let (answer, mut up) = send(&client, ask("/api/chat")).await;
        let mut stream = next(&mut served).await;
        let mut down = agree(&mut stream);
        let mut heard = soon("the answer", answer).await.expect("an answer").into_body();
        if from_server { &mut down } else { &mut up }.send_trailers(trailers()).expect("sent");
        assert_eq!(end_of(stream.request.body_mut()).await, Some(Reason::PROTOCOL_ERROR), "{from_server}");
        assert_eq!(end_of(&mut heard).await, Some(Reason::PROTOCOL_ERROR), "{from_server}");
    }
}

#[tokio::test]
async fn a_websocket_over_http2_goes_when_its_rule_does_and_no_other_stream() {
    let (at, mut served) = upgrading_server().await;
    let mut world = World::start(&websockets(), at).await;
    let client = connect(&world).await;
    assert!(offered(&client).await);
    world.record().await;
    let (answer, _up) = send(&client, ask("/api/chat")).await;
    let mut stream = next(&mut served).await;
    let _down = agree(&mut stream);
    let mut heard = soon("the answer", answer).await.expect("an answer").into_body();
    let request = Request::get("http://cart/api/watch").body(()).expect("a request");
    let (other, _) = client.clone().send_request(request, true).expect("sent");
    let mut watched = next(&mut served).await;
    let mut watch = agree(&mut watched);
    let mut other = soon("the answer", other).await.expect("an answer").into_body();
    assert_eq!(world.proxy.state.swap(snapshot(2, &websockets())), 0);
    assert_eq!(world.proxy.state.swap(snapshot(3, &shop())), 1);
    assert_eq!(end_of(&mut heard).await, Some(Reason::CANCEL));
    assert_eq!(end_of(stream.request.body_mut()).await, Some(Reason::CANCEL));
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.error.as_str()), ("deny", "revoked"));
    watch.send_data("on".into(), true).expect("sent");
    exact(&mut other, "on").await;
}

#[tokio::test]
async fn connect_over_http2_opens_a_tunnel_where_a_rule_names_it_and_its_host() {
    // No setting is asked for (RFC 9113 §8.5).
    let (at, mut served) = server().await;
    let mut world = World::start(&websockets(), at).await;
    let client = connect(&world).await;
    let (answer, mut up) = send(&client, tunnel("db.shop:5432")).await;
    let mut stream = next(&mut served).await;
    assert_eq!(
        (stream.request.method().as_str(), stream.request.uri().to_string()),
        ("CONNECT", "db.shop:5432".into())
    );
    let mut down = agree(&mut stream);
    let mut heard = soon("the answer", answer).await.expect("an answer").into_body();
    up.send_data("select 1".into(), false).expect("sent");
    exact(stream.request.body_mut(), "select 1").await;
    down.send_data("1".into(), true).expect("sent");
    exact(&mut heard, "1").await;
    up.send_data("bye".into(), true).expect("sent");
    exact(stream.request.body_mut(), "bye").await;
    assert_eq!(end_of(stream.request.body_mut()).await, None);
    let record = world.record().await;
    assert_eq!(
        (record.verdict.as_str(), record.host.as_str(), record.bytes_up),
        ("allow", "db.shop:5432", 11)
    );
    let (answer, _up) = send(&client, tunnel("db.other:5432")).await;
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::FORBIDDEN);
    // Without such a rule no CONNECT does, whatever else is let through.
    world.proxy.state.swap(snapshot(2, &Rules { http: vec![http(&[], None)], ..shop() }));
    let (answer, _up) = send(&client, tunnel("db.shop:5432")).await;
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), StatusCode::FORBIDDEN);
    assert!(served.try_recv().is_err());
    // One that has said all with its head says nothing, and may still be told something.
    world.proxy.state.swap(snapshot(3, &websockets()));
    let fields = [(":method", "CONNECT"), (":authority", "db.shop:5432")];
    let mut raw = raw_http2(&world).await;
    raw.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields)))
        .await
        .expect("the proxy reads");
    let mut stream = next(&mut served).await;
    let _down = agree(&mut stream);
    assert!(hear(stream.request.body_mut()).await.is_none());
    assert_eq!(reset_of(&mut raw, 1).await, None);
}
