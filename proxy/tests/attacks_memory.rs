//! HPACK bombs: a reference of one byte to a value of kilobytes, again and again, on streams that stay open. Alone in
//! its process, whose memory it looks at.

mod common;

use common::http2::{END_HEADERS, END_STREAM, HEADERS, block, frame, raw_http2};
use common::{World, shop, soon};
use sluice_proxy::limits::H2_STREAMS;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The longest value of the bomb: with its name and HPACK's own 32 bytes it fits into the table's 4096.
const VALUE: usize = 4000;
/// As many as the limit on a header list lets through beside the rest of the head.
const REFERENCES: usize = 7;
/// Enough that what is copied would stand out of what streams cost anyway.
const CONNECTIONS: usize = 20;

/// A server that takes every stream and answers none.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                if stream.write_all(&frame(common::http2::SETTINGS, 0, 0, b"")).await.is_ok() {
                    while let Ok(1..) = stream.read(&mut piece).await {}
                }
            });
        }
    });
    at
}

/// What the process has in memory, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1024
}

/// A literal that enters the table, its length in HPACK's way (RFC 7541 §5.1).
fn indexed(value: &[u8]) -> Vec<u8> {
    let mut literal = vec![0x40, 1, b'x'];
    match value.len().checked_sub(127) {
        None => literal.push(u8::try_from(value.len()).expect("short")),
        Some(mut rest) => {
            literal.push(127);
            while rest >= 128 {
                literal.push(u8::try_from(rest % 128).expect("7 bits") | 128);
                rest /= 128;
            }
            literal.push(u8::try_from(rest).expect("7 bits"));
        }
    }
    literal.extend_from_slice(value);
    literal
}

/// Opens as many streams as there may be, each with references to a value of this length; returns what they cost.
async fn cost(world: &World, length: usize) -> (usize, Vec<TcpStream>) {
    let before = resident();
    let open = world.proxy.state.open_flows();
    let start = [(":method", "GET"), (":scheme", "http"), (":path", "/api"), (":authority", "cart")];
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = raw_http2(world).await;
        let mut bomb = Vec::new();
        for number in 0..H2_STREAMS {
            let mut fields = block(&start);
            if number == 0 {
                fields.extend(indexed(&vec![b'y'; length]));
            }
            // 62 is the newest entry of the table.
            fields.extend([0x80 | 62; REFERENCES - 1]);
            bomb.extend(frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &fields));
        }
        client.write_all(&bomb).await.expect("the proxy reads");
        clients.push(client);
    }
    let all = open + CONNECTIONS * usize::try_from(H2_STREAMS).expect("few");
    soon("every stream", async {
        while world.proxy.state.open_flows() < all {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (resident().saturating_sub(before), clients)
}

#[tokio::test]
async fn a_reference_costs_what_it_is_not_what_it_stands_for() {
    let world = World::start(&shop(), silent().await).await;
    let (short, _open) = cost(&world, 1).await;
    let (long, _open_too) = cost(&world, VALUE).await;
    let copied = CONNECTIONS * usize::try_from(H2_STREAMS).expect("few") * (REFERENCES - 1) * VALUE;
    assert!(
        long < short + copied / 4,
        "{long} bytes for streams with long values, {short} with short ones: copies would be {copied}"
    );
}
