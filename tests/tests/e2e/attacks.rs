//! Bytes that mean one thing to a policy and another to a server: whatever is sent, the server must see nothing
//! but what is allowed.

use crate::NEEDS;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sluice_tests::harness;
use sluice_tests::peer::raw_client;
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::Family;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("nothing is smuggled past a verdict", NEEDS, smuggling),
        harness::test("a pod outside its addresses is not heard", NEEDS, forged_source),
    ]
}

/// How long the answer to an attack is waited for.
const ANSWER: Duration = Duration::from_millis(800);

/// Requests in one stream of bytes; each tries to get something other than `GET /items…` to the server.
const ATTACKS: &[(&str, &[u8])] = &[
    (
        "both lengths",
        b"GET /items HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
          0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    (
        "two lengths",
        b"GET /items HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 38\r\n\r\n\
          GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    (
        "a coding that is none",
        b"GET /items HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n\
          0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    (
        "chunked not last",
        b"GET /items HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n\
          0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    (
        "a space before the colon",
        b"GET /items HTTP/1.1\r\nHost: x\r\nContent-Length : 38\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    ("a folded line", b"GET /items HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n GET /smuggled HTTP/1.1\r\n\r\n"),
    ("bare line feeds", b"GET /items HTTP/1.1\nHost: x\n\nGET /smuggled HTTP/1.1\nHost: x\n\n"),
    ("a bare carriage return", b"GET /items HTTP/1.1\r\nHost: x\rX: y\r\n\r\n"),
    ("a chunk size with a sign", b"GET /items HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n"),
    ("the absolute form", b"GET http://x/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("an authority with a path", b"GET http://x/items@y/../../smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a pipelined denial", b"GET /items HTTP/1.1\r\nHost: x\r\n\r\nDELETE /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    (
        "an upgrade to HTTP/2",
        b"GET /items HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
          HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    (
        "a WebSocket that no rule names",
        b"GET /items HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    ),
    ("a NUL in the path", b"GET /items\0/../smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a tab for a space", b"GET\t/smuggled\tHTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a method in another case", b"gEt /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a method override", b"GET /smuggled HTTP/1.1\r\nHost: x\r\nX-Original-URL: /items\r\nX-Rewrite-URL: /items\r\n\r\n"),
    ("CONNECT", b"CONNECT x:8080 HTTP/1.1\r\nHost: x:8080\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("two hosts", b"GET /items HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("HTTP/0.9", b"GET /smuggled\r\n\r\n"),
    ("empty lines first", b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("TLS", b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2bGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    (
        "a request in a refused body",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 38\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
];

fn smuggling() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    let client = &scene.world().pod("shop/frontend").netns;
    let target = scene.address("shop/cart", Family::V4, 8080);
    let sent = std::thread::scope(|scope| {
        let attack = |bytes: &'static [u8]| {
            scope.spawn(move || client.inside(|| raw_client::tcp(target, bytes, usize::MAX, ANSWER)))
        };
        let workers: Vec<_> = ATTACKS.iter().map(|(name, bytes)| (name, attack(bytes))).collect();
        let join = |(name, worker): (_, std::thread::ScopedJoinHandle<'_, Result<raw_client::RawAnswer>>)| {
            Ok((name, worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?))
        };
        workers.into_iter().map(join).collect::<Result<Vec<(&&str, raw_client::RawAnswer)>>>()
    })?;
    for (name, answer) in &sent {
        ensure!(answer.connected, "{name} was not sent: {answer:?}");
        let switched = answer.text().contains("HTTP/1.1 101");
        ensure!(!switched, "{name}: protocols were switched: {answer:?}");
    }
    let mut seen = Vec::new();
    for line in scene.servers[1].lines_since(0) {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if event["event"] == "request" {
            seen.push((event["request"]["method"].clone(), event["request"]["path"].clone()));
        }
        // hyper's words for a head or a chunk that it cannot read; a client that goes away is none of them.
        let unread =
            event["error"].as_str().is_some_and(|error| error.contains("invalid") || error.contains("parse"));
        ensure!(!unread, "the server was sent what it cannot read: {line}");
    }
    let allowed = |(method, path): &&(Value, Value)| {
        *method == "GET" && path.as_str().is_some_and(|path| path == "/items" || path.starts_with("/items/"))
    };
    let smuggled: Vec<_> = seen.iter().filter(|request| !allowed(request)).collect();
    ensure!(smuggled.is_empty(), "the server saw {smuggled:?}");
    ensure!(!seen.is_empty(), "nothing at all came through, so nothing is proven: {sent:#?}");
    Ok(())
}

/// A pod that takes another's address: what it sends is dropped, and what the other is allowed stays its own.
fn forged_source() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    for family in Family::BOTH {
        let (frontend, intruder) = (scene.world().pod("shop/frontend"), scene.world().pod("shop/intruder"));
        let stolen = frontend.ip(family);
        let length = if family == Family::V4 { 32 } else { 128 };
        let address = format!("{stolen}/{length}");
        let mut add = vec!["ip", "addr", "add", &address, "dev", "eth0"];
        if family == Family::V6 {
            add.push("nodad");
        }
        intruder.netns.run(&add)?;
        // The stolen address is the one that packets go out with.
        for target in [scene.address("shop/cart", family, 5353), scene.address("shop/billing", family, 5353)]
        {
            let from_stolen = intruder.netns.inside(|| -> Result<bool> {
                let socket = std::net::UdpSocket::bind((stolen, 0))?;
                socket.set_read_timeout(Some(ANSWER / 2))?;
                socket.send_to(b"forged", target)?;
                Ok(socket.recv(&mut [0; 16]).is_ok())
            })??;
            ensure!(!from_stolen, "an answer came for a forged datagram to {target}");
        }
        intruder.netns.run(&["ip", "addr", "del", &address, "dev", "eth0"])?;
    }
    for pod in ["shop/cart", "shop/billing"] {
        let reached = scene.reached(pod, 5353)?;
        ensure!(reached == (0, 0), "forged datagrams reached {pod}: {reached:?}");
    }
    let target = scene.address("shop/cart", Family::V4, 5353);
    ensure!(scene.udp("shop/frontend", target, Duration::from_secs(5))?, "the true owner is cut off");
    Ok(())
}
