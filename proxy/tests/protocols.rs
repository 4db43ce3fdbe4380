//! Protocols and versions that no other test has: HTTP/1.0, gRPC-Web, servers that speak first on a port with rules.

mod common;

use common::http2::{END_HEADERS, END_STREAM, HEADERS, block, first, frame, raw_http2, server};
use common::{OK, Recorder, Rules, World, shop, soon};
use http::Response;
use sluice_policy::GrpcProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

#[tokio::test]
async fn http10_is_judged_and_closes_unless_it_asks_to_be_kept() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    // Without Host, which came with HTTP/1.1.
    let get = "GET /api HTTP/1.0\r\n\r\n";
    let mut client = world.connect().await;
    client.send(get).await;
    assert_eq!(client.rest().await.expect("an answer, then the end"), OK.as_bytes());
    let record = world.record().await;
    assert_eq!((record.protocol.as_str(), record.verdict.as_str()), ("http/1.0", "allow"));
    let kept = "GET /api HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let mut client = world.connect().await;
    assert_eq!(client.ask(kept).await, OK);
    assert_eq!(client.ask(kept).await, OK);
    let denied = client.ask("GET /admin HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    let post = "POST /api/v1/checkout HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody";
    let mut client = world.connect().await;
    client.send(post).await;
    assert_eq!(client.rest().await.expect("an answer, then the end"), OK.as_bytes());
    assert_eq!(server.seen(), [get, kept, kept, post].concat(), "byte for byte");
}

/// gRPC-Web is a protocol of its own to a rule: over either HTTP, and only where the rule names it.
#[tokio::test]
async fn grpc_web_passes_where_a_rule_names_it() {
    let call = |kind: &str| {
        format!(
            "POST /shop.v1.Cart/GetCart HTTP/1.1\r\nHost: cart\r\nContent-Type: {kind}\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0"
        )
    };
    // A body with trailers in it, as gRPC-Web has them.
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: 21\r\n\r\n\
                  \x7f\0\0\0\x10grpc-status: 0\r\n";
    let mut web = Rules { http: Vec::new(), ..shop() };
    web.grpc[0].protocols = vec![GrpcProtocol::GrpcWeb];
    for (rules, kind, passes) in [
        (&web, "application/grpc-web+proto", true),
        (&web, "application/grpc-web-text", true),
        (&web, "application/grpc", false),
        (&web, "application/json", false),
        (&Rules { http: Vec::new(), ..shop() }, "application/grpc-web+proto", false),
    ] {
        let server = Recorder::start(answer).await;
        let world = World::start(rules, server.at).await;
        let got = world.connect().await.ask(call(kind)).await;
        if passes {
            assert_eq!(got, answer, "{kind}");
            assert_eq!(server.seen(), call(kind));
        } else {
            assert!(got.starts_with("HTTP/1.1 403 "), "{kind}: {got}");
            assert_eq!(server.seen(), "", "{kind}");
        }
    }
    // Over HTTP/2.
    let (at, mut served) = server().await;
    let world = World::start(&web, at).await;
    let mut client = raw_http2(&world).await;
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/shop.v1.Cart/GetCart"),
        (":authority", "cart"),
        ("content-type", "application/grpc-web+proto"),
    ];
    client.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields))).await.expect("sent");
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    stream.respond.send_response(Response::new(()), true).expect("sent");
    assert_eq!(first(&mut client, &[HEADERS]).await, Some(HEADERS));
}

/// Where requests are judged, a client that waits for its server to speak has said nothing that could be: it is not
/// passed on unread, and its first word that is no request ends it with a reason.
#[tokio::test]
async fn a_protocol_that_nobody_reads_is_told_so_where_requests_are_judged() {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let mut world = World::start(&shop(), listener.local_addr().expect("bound")).await;
    let mut client = world.connect().await;
    let silent =
        tokio::time::timeout(std::time::Duration::from_millis(300), client.stream.read(&mut [0])).await;
    assert!(silent.is_err(), "nobody is dialled for it, and it is not cut");
    client.send("EHLO mail\r\n").await;
    assert!(client.rest().await.is_err(), "reset");
    let record = world.record().await;
    assert_eq!((record.protocol.as_str(), record.reason.as_str()), ("tcp", "parse_error"));
}
