//! WebSockets and CONNECT: only under a rule that names them, carried unread, and gone with their permission.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test says what is wrong by failing")]

mod common;

use common::{Rules, World, http, shop, snapshot, soon};
use sluice_policy::{HostMatch, HttpMatch, NameMatch, PathMatch};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const ASK: &str = "GET /api/chat HTTP/1.1\r\nHost: cart\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const CONNECT: &str = "CONNECT db.shop:5432 HTTP/1.1\r\nHost: db.shop:5432\r\n\r\n";

/// A server that answers its first request head with `answer` and sends back whatever comes after, in upper case.
async fn server(answer: &'static str) -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let heads: Arc<Mutex<String>> = Arc::default();
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut said = Vec::new();
                while !said.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    said.push(byte);
                }
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&said));
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                let mut piece = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut piece).await {
                    if stream.write_all(&piece[..length].to_ascii_uppercase()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (at, heads)
}

fn websockets() -> Rules {
    let chat = HttpMatch {
        upgrades: vec!["websocket".into()],
        ..http(&["GET"], Some(PathMatch::prefix("/api/chat")))
    };
    let names = vec![HostMatch::Name(NameMatch::Exact("db.shop".into()))];
    let connect = HttpMatch { hosts: names, ..http(&["CONNECT"], None) };
    let mut rules = shop();
    rules.http.extend([chat, connect]);
    rules
}

async fn exact(client: &mut common::Client, expected: &str) {
    let mut said = vec![0; expected.len()];
    soon("an answer", client.stream.read_exact(&mut said)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&said), expected);
}

#[tokio::test]
async fn a_websocket_passes_under_a_rule_that_names_it() {
    let (at, heads) = server(SWITCH).await;
    let mut world = World::start(&websockets(), at).await;
    let mut client = world.connect().await;
    // With the first frame behind it, in one segment.
    client.send(format!("{ASK}hello")).await;
    exact(&mut client, &format!("{SWITCH}HELLO")).await;
    client.send("again").await;
    exact(&mut client, "AGAIN").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await.unwrap(), b"");
    assert_eq!(*heads.lock().unwrap(), ASK, "the client's own bytes go on");
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.status, record.rule.as_str()), ("allow", 101, "frontend"));
    assert_eq!((record.bytes_up, record.bytes_down), (10, 10));
}

#[tokio::test]
async fn without_such_a_rule_or_with_anything_odd_it_is_refused() {
    let (at, heads) = server(SWITCH).await;
    let mut world = World::start(&websockets(), at).await;
    let upgrade = |method: &str, path: &str, more: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\n{more}\r\n")
    };
    for (what, request) in [
        ("another path", upgrade("GET", "/api/v1/items", "Upgrade: websocket\r\n")),
        ("another token", upgrade("GET", "/api/chat", "Upgrade: tls/1.2\r\n")),
        ("two tokens", upgrade("GET", "/api/chat", "Upgrade: websocket, tls/1.2\r\n")),
        ("two lines", upgrade("GET", "/api/chat", "Upgrade: websocket\r\nUpgrade: h2c\r\n")),
        ("a body", upgrade("GET", "/api/chat", "Upgrade: websocket\r\nContent-Length: 5\r\n")),
        ("another method", upgrade("POST", "/api/chat", "Upgrade: websocket\r\n")),
        ("no Connection", "GET /api/chat HTTP/1.1\r\nHost: cart\r\nUpgrade: websocket\r\n\r\n".to_owned()),
        ("HTTP/1.0", upgrade("GET", "/api/chat", "Upgrade: websocket\r\n").replace("HTTP/1.1", "HTTP/1.0")),
    ] {
        let answer = world.connect().await.ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{what}: {answer}");
        assert_eq!(world.record().await.verdict, "deny", "{what}");
    }
    assert_eq!(*heads.lock().unwrap(), "");
}

#[tokio::test]
async fn what_the_server_answers_decides_what_follows() {
    // It switches to something else.
    let other = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tls/1.2\r\n\r\n";
    let (at, _) = server(other).await;
    let world = World::start(&websockets(), at).await;
    assert!(world.connect().await.ask(ASK).await.starts_with("HTTP/1.1 502 "));
    // It does not switch: what the client says next is a request, and judged.
    let (at, heads) = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut world = World::start(&websockets(), at).await;
    let mut client = world.connect().await;
    client.send(format!("{ASK}GET /admin HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
    assert!(client.answer().await.ends_with("\r\n\r\nok"));
    assert!(client.answer().await.starts_with("HTTP/1.1 403 "));
    assert_eq!(*heads.lock().unwrap(), ASK);
    let verdicts = [world.record().await.verdict, world.record().await.verdict];
    assert_eq!(verdicts, ["allow", "deny"]);
}

#[tokio::test]
async fn connect_opens_a_tunnel_where_a_rule_names_it_and_its_host() {
    let (at, heads) = server("HTTP/1.1 200 Connected\r\nContent-Length: 7\r\n\r\n").await;
    let mut world = World::start(&websockets(), at).await;
    let mut client = world.connect().await;
    client.send(CONNECT).await;
    exact(&mut client, "HTTP/1.1 200 Connected\r\nContent-Length: 7\r\n\r\n").await;
    client.send("select 1").await;
    exact(&mut client, "SELECT 1").await;
    drop(client);
    assert_eq!(world.record().await.verdict, "allow");
    assert_eq!(*heads.lock().unwrap(), CONNECT);
    for (what, request, status) in [
        ("another host", CONNECT.replace("db.shop", "db.other"), "403"),
        ("a host beside the target", CONNECT.replace("CONNECT db.shop", "CONNECT db.other"), "400"),
        ("a body", CONNECT.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\n"), "403"),
    ] {
        let answer = world.connect().await.ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    }
    assert_eq!(*heads.lock().unwrap(), CONNECT, "nothing more came through");
    // Without such a rule no CONNECT does.
    world.proxy.state.swap(snapshot(2, &Rules { http: vec![http(&[], None)], ..shop() }));
    assert!(world.connect().await.ask(CONNECT).await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn a_websocket_goes_when_its_rule_does() {
    let (at, _) = server(SWITCH).await;
    let mut world = World::start(&websockets(), at).await;
    let mut client = world.connect().await;
    client.send(ASK).await;
    exact(&mut client, SWITCH).await;
    assert_eq!(world.proxy.state.swap(snapshot(2, &websockets())), 0);
    assert_eq!(world.proxy.state.swap(snapshot(3, &shop())), 1);
    assert!(client.rest().await.is_err(), "reset");
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.error.as_str()), ("deny", "revoked"));
}
