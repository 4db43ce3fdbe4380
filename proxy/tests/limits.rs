//! What one endpoint may hold of the worker that it shares with all: places, bytes, and time.

mod common;

use bytes::Bytes;
use common::http2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, block, first, frame, raw_http2,
    server,
};
use common::{CART, CLIENT, OK, Recorder, Rules, World, shop, soon};
use h2::SendStream;
use http::Response;
use sluice_proxy::judge::Leg;
use sluice_proxy::limits::{
    CONNECTION_BYTES, CONNECTION_STREAMS, CONNECTIONS_PER_ENDPOINT, CONNECTIONS_PER_SOURCE, ENDPOINT_BYTES,
    ENDPOINT_STREAMS, H2_STREAM_WINDOW, H2_STREAMS, HEAD_BYTES, STREAMS_AT_ONCE, TUNNEL_IDLE_TIMEOUT,
};
use sluice_proxy::proxy::Http2;
use sluice_proxy::share::{Full, Shares};
use sluice_proxy::telemetry::sampler::Sampler;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Connections of an attack on memory: what their streams may hold is several times what their endpoint may.
const CONNECTIONS: usize = 30;
/// What a connection may have read before it is looked at how much it holds: one read.
const READ_BYTES: usize = 64 * 1024;

#[tokio::test]
async fn sources_and_endpoints_have_so_many_places_and_give_them_back() {
    let world = World::start(&shop(), SocketAddr::new(CART, 1)).await;
    let view = world.proxy.state.view();
    let shares: Arc<Shares> = Arc::default();
    let leg = |source: [u8; 4]| Leg {
        source: SocketAddr::new(IpAddr::from(source), 1),
        destination: SocketAddr::new(CART, 80),
    };
    let mut places = Vec::new();
    for number in 0..CONNECTIONS_PER_SOURCE {
        places.push(shares.place(&view, &leg([10, 0, 0, 1])).unwrap_or_else(|_| panic!("{number}")));
    }
    assert_eq!(shares.place(&view, &leg([10, 0, 0, 1])).map(drop), Err(Full::Source));
    for number in CONNECTIONS_PER_SOURCE..CONNECTIONS_PER_ENDPOINT {
        let [_, _, high, low] = number.to_be_bytes();
        places.push(shares.place(&view, &leg([10, 1, high, low])).unwrap_or_else(|_| panic!("{number}")));
    }
    assert_eq!(shares.place(&view, &leg([10, 9, 9, 9])).map(drop), Err(Full::Endpoint));
    // Another endpoint's, even of a source that has many here: the cart calls somebody.
    let elsewhere = Leg {
        source: SocketAddr::new(IpAddr::from([10, 9, 9, 9]), 1),
        destination: SocketAddr::new(IpAddr::from([10, 8, 8, 8]), 80),
    };
    drop(shares.place(&view, &elsewhere).expect("another's"));
    assert_eq!(shares.of(CART).0, CONNECTIONS_PER_ENDPOINT);
    places.pop();
    drop(shares.place(&view, &leg([10, 9, 9, 9])).expect("one was given back"));
    places.clear();
    assert_eq!(shares.of(CART), (0, 0));
}

#[tokio::test]
async fn an_endpoint_has_so_many_streams_beyond_those_of_each_connection() {
    let world = World::start(&shop(), SocketAddr::new(CART, 1)).await;
    let view = world.proxy.state.view();
    let shares: Arc<Shares> = Arc::default();
    let of = |endpoint: IpAddr| Leg {
        source: SocketAddr::new(IpAddr::from([10, 9, 9, 9]), 1),
        destination: SocketAddr::new(endpoint, 80),
    };
    let place = shares.place(&view, &of(CART)).expect("a place");
    let most = H2_STREAMS as usize;
    let mut all = Vec::new();
    let refused = loop {
        let mut streams = place.charge().streams();
        match streams.set(most) {
            true => all.push(streams),
            false => break streams,
        }
        assert!(all.len() * (most - CONNECTION_STREAMS) <= ENDPOINT_STREAMS, "it ends");
    };
    let taken = shares.streams_of(CART);
    assert!((ENDPOINT_STREAMS - most - STREAMS_AT_ONCE..=ENDPOINT_STREAMS).contains(&taken), "{taken}");
    // Its own streams each connection has all the same, and so has whoever is of another endpoint.
    let mut refused = refused;
    assert!(refused.set(CONNECTION_STREAMS) && !refused.set(CONNECTION_STREAMS + STREAMS_AT_ONCE * 6));
    let elsewhere = IpAddr::from([10, 8, 8, 8]);
    let other = shares.place(&view, &of(elsewhere)).expect("a place");
    assert!(other.charge().streams().set(most));
    assert_eq!(shares.streams_of(elsewhere), 0, "given back with its connection");
    // One more or less takes and gives nothing: the others of the endpoint are not touched.
    let before = shares.streams_of(CART);
    for open in [most, most - 1, most, most - 2, most - STREAMS_AT_ONCE] {
        assert!(all[0].set(open));
        assert_eq!(shares.streams_of(CART), before);
    }
    // What is idle keeps nothing.
    assert!(all[0].set(1));
    assert!(shares.streams_of(CART) < before && refused.set(most));
    drop((all, refused));
    assert_eq!(shares.streams_of(CART), 0);
}

#[tokio::test]
async fn an_endpoint_with_all_its_streams_is_refused_more_and_keeps_its_connections() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("up to the maximum");
    for http2 in [Http2::Relayed, Http2::Rewritten] {
        let mut world = World::on(&shop(), reluctant().await, Sampler::OFF, http2).await;
        let mut clients = Vec::new();
        let asks: Vec<u8> = (0..H2_STREAMS).flat_map(|number| get(number * 2 + 1)).collect();
        let record = loop {
            let mut client = raw_http2(&world).await;
            client.write_all(&asks).await.expect("the proxy reads");
            clients.push(client);
            assert!(
                clients.len() < 2 * ENDPOINT_STREAMS / (H2_STREAMS as usize - CONNECTION_STREAMS),
                "it ends"
            );
            // As many turns as its streams need: an endpoint has a few of them at a time.
            for _ in 0..H2_STREAMS {
                tokio::task::yield_now().await;
            }
            if let Ok(record) = world.records.try_recv() {
                break record;
            }
        };
        assert_eq!((record.verdict.as_str(), record.reason.as_str()), ("deny", "limit"), "{http2:?}");
        assert_eq!(record.error, "endpoint_streams");
        assert!(world.proxy.streams_of(CART) <= ENDPOINT_STREAMS);
        // It may be sent again, and the connection stays: its own streams every connection has.
        let mut another = raw_http2(&world).await;
        another.write_all(&asks).await.expect("the proxy reads");
        let mut refused = 0;
        let own = u32::try_from(CONNECTION_STREAMS).expect("few");
        while refused < H2_STREAMS - own - 2 * u32::try_from(STREAMS_AT_ONCE).expect("few") {
            let (kind, payload) = frame_of(&mut another).await;
            assert!(kind != GOAWAY, "{refused} were refused");
            if kind == RST_STREAM {
                assert_eq!(payload, [0, 0, 0, 7], "REFUSED_STREAM");
                refused += 1;
            }
        }
        drop((clients, another));
        soon("nothing taken", async {
            while world.proxy.streams_of(CART) != 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

async fn frame_of(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    soon("a frame", stream.read_exact(&mut head)).await.expect("the connection stays");
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
    soon("a payload", stream.read_exact(&mut payload)).await.expect("the connection stays");
    (head[3], payload)
}

#[tokio::test]
async fn a_source_that_has_all_its_connections_is_refused_and_no_other() {
    // Two descriptors for each, in one process.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("up to the maximum");
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_PER_SOURCE {
        open.push(world.connect_from(CLIENT).await);
    }
    let mut client = world.connect().await;
    assert!(client.rest().await.is_err(), "reset");
    let record = world.record().await;
    assert_eq!((record.reason.as_str(), record.error.as_str()), ("limit", "source_connections"));
    let mut intruder = world.connect_from(common::INTRUDER).await;
    assert!(soon("a reset", intruder.read(&mut [0])).await.is_err());
    assert_eq!(world.record().await.reason, "default_deny", "another source is judged as ever");
    open.truncate(10);
    soon("places", async {
        while world.proxy.held(CART).0 > 10 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(world.connect().await.ask("GET /api HTTP/1.1\r\nHost: cart\r\n\r\n").await, OK);
}

/// Sends as long as the window lets it, and counts.
async fn pour(mut body: SendStream<Bytes>, count: Arc<AtomicUsize>) {
    loop {
        body.reserve_capacity(16 * 1024);
        let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { return };
        if body.send_data(Bytes::from(vec![b'x'; room]), false).is_err() {
            return;
        }
        count.fetch_add(room, Ordering::SeqCst);
    }
}

fn get(stream: u32) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/api"), (":authority", "cart")];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
}

fn post(stream: u32) -> Vec<u8> {
    let path = "/api/v1/checkout";
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "cart")];
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

/// Waits until the number does not change any more.
async fn at_rest(number: impl Fn() -> usize) -> usize {
    let mut before = number();
    loop {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let now = number();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Window stalls (CVE-2019-9511, CVE-2019-9517): windows for each stream, and none for all of them together.
#[tokio::test]
async fn answers_that_nobody_reads_hold_so_much_of_an_endpoint_and_no_more() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let poured = Arc::new(AtomicUsize::new(0));
    let counted = poured.clone();
    tokio::spawn(async move {
        while let Some(mut stream) = served.recv().await {
            let body = stream.respond.send_response(Response::new(()), false).expect("sent");
            tokio::spawn(pour(body, counted.clone()));
        }
    });
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = raw_http2(&world).await;
        let asks: Vec<u8> = (0..H2_STREAMS).flat_map(|number| get(number * 2 + 1)).collect();
        client.write_all(&asks).await.expect("the proxy reads");
        clients.push(client);
    }
    let poured = at_rest(|| poured.load(Ordering::SeqCst)).await;
    let (connections, held) = world.proxy.held(CART);
    assert_eq!(connections as usize, CONNECTIONS);
    let most = ENDPOINT_BYTES + CONNECTIONS * (READ_BYTES + CONNECTION_BYTES);
    assert!((ENDPOINT_BYTES / 2..most).contains(&held), "{held} of {poured}");
    // Whoever keeps nothing waiting is served all the same.
    let mut other = raw_http2(&world).await;
    other.write_all(&get(1)).await.expect("the proxy reads");
    assert_eq!(first(&mut other, &[DATA]).await, Some(DATA));
    drop((clients, other));
    soon("nothing held", async {
        while world.proxy.held(CART) != (0, 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A server that takes every stream, and not more than the first window of them all.
async fn reluctant() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = vec![0; 64 * 1024];
                if stream.write_all(&frame(SETTINGS, 0, 0, b"")).await.is_ok() {
                    while let Ok(1..) = stream.read(&mut piece).await {}
                }
            });
        }
    });
    at
}

#[tokio::test]
async fn bodies_that_nobody_takes_hold_so_much_of_an_endpoint_and_no_more() {
    let mut world = World::start(&shop(), reluctant().await).await;
    let mut clients: Vec<(TcpStream, bool)> = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = raw_http2(&world).await;
        let mut bodies = Vec::new();
        for number in 0..H2_STREAMS {
            bodies.extend(post(number * 2 + 1));
            for _ in 0..H2_STREAM_WINDOW / 16_384 - 1 {
                bodies.extend(frame(DATA, 0, number * 2 + 1, &[b'x'; 16_384]));
            }
        }
        // A flood of such streams may end its connection.
        let whole = soon("sending", client.write_all(&bodies)).await.is_ok();
        clients.push((client, whole));
    }
    let held = at_rest(|| world.proxy.held(CART).1).await;
    assert!(held < ENDPOINT_BYTES + CONNECTIONS * (READ_BYTES + CONNECTION_BYTES), "{held}");
    let mut refused = 0;
    while let Ok(record) = world.records.try_recv() {
        if record.error == "endpoint_bytes" {
            assert_eq!((record.verdict.as_str(), record.reason.as_str()), ("deny", "limit"));
            refused += 1;
        }
    }
    assert!(refused > 0, "somebody was told");
    let (mut last, _) = clients.pop().expect("the last");
    assert_eq!(first(&mut last, &[RST_STREAM]).await, Some(RST_STREAM));
}

#[tokio::test]
async fn a_head_that_an_endpoint_has_no_room_for_is_refused() {
    let (at, mut served) = server().await;
    let mut world = World::start(&shop(), at).await;
    tokio::spawn(async move {
        while let Some(mut stream) = served.recv().await {
            let body = stream.respond.send_response(Response::new(()), false).expect("sent");
            tokio::spawn(pour(body, Arc::default()));
        }
    });
    let mut clients = Vec::new();
    while world.proxy.held(CART).1 < ENDPOINT_BYTES {
        let mut client = raw_http2(&world).await;
        let asks: Vec<u8> = (0..H2_STREAMS).flat_map(|number| get(number * 2 + 1)).collect();
        client.write_all(&asks).await.expect("the proxy reads");
        clients.push(client);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut large = world.connect().await;
    large.send(format!("GET /api HTTP/1.1\r\nHost: cart\r\nX: {}", "x".repeat(HEAD_BYTES / 2))).await;
    assert!(large.answer().await.starts_with("HTTP/1.1 503 "));
    let record = loop {
        let record = world.record().await;
        if record.protocol == "http/1.1" {
            break record;
        }
    };
    assert_eq!((record.reason.as_str(), record.error.as_str()), ("limit", "endpoint_bytes"));
}

/// From here on time is the test's: it goes on when nothing else does.
fn pause() {
    tokio::time::pause();
}

#[tokio::test]
async fn what_waits_too_long_for_a_window_is_reset() {
    let (at, mut served) = server().await;
    let mut world = World::start(&shop(), at).await;
    let mut client = raw_http2(&world).await;
    let asks: Vec<u8> = [1, 3].into_iter().flat_map(get).collect();
    client.write_all(&asks).await.expect("the proxy reads");
    let poured = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let mut stream = soon("the stream", served.recv()).await.expect("a stream");
        let body = stream.respond.send_response(Response::new(()), false).expect("sent");
        tokio::spawn(pour(body, poured.clone()));
    }
    at_rest(|| poured.load(Ordering::SeqCst)).await;
    pause();
    let mut reset = false;
    while !reset {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
        client.read_exact(&mut payload).await.expect("a payload");
        reset = head[3] == RST_STREAM;
        assert!(!reset || payload == [0, 0, 0, 8], "{payload:?}");
    }
    let record = world.records.recv().await.expect("a record");
    assert_eq!((record.verdict.as_str(), record.error.as_str()), ("allow", "window_stalled"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_loses_it() {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the proxy");
        let length = stream.read(&mut [0; 1024]).await.expect("a head");
        assert!(length > 0, "the head");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.expect("sent");
        loop {
            match stream.write(&[b'x'; 64 * 1024]).await {
                Ok(length) => counted.fetch_add(length, Ordering::SeqCst),
                Err(error) => return error,
            };
        }
    });
    let mut world = World::start(&shop(), at).await;
    let mut client = world.connect().await;
    client.send("GET /api HTTP/1.1\r\nHost: cart\r\n\r\n").await;
    let sent = at_rest(|| sent.load(Ordering::SeqCst)).await;
    assert!(sent < 1_000_000_000);
    pause();
    let record = world.records.recv().await.expect("a record");
    assert_eq!((record.status, record.error.as_str()), (200, "client_closed"));
    serving.await.expect("no panic");
}

#[tokio::test]
async fn a_body_that_stops_coming_ends_its_request() {
    let server = Recorder::start("").await;
    let mut world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    let head = "POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\nContent-Length: 10\r\n\r\nab";
    client.send(head).await;
    soon("the server", async {
        while server.seen() != head {
            tokio::task::yield_now().await;
        }
    })
    .await;
    pause();
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).await.expect("an answer, then the end");
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    let record = world.records.recv().await.expect("a record");
    assert_eq!((record.status, record.error.as_str()), (408, "body_timeout"));
}

#[tokio::test]
async fn a_tunnel_that_says_nothing_for_days_ends_and_one_that_says_something_does_not() {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut piece).await {
                    stream.write_all(&piece[..length]).await.expect("sent");
                }
            });
        }
    });
    let mut world = World::start(&Rules { plain: true, ..shop() }, at).await;
    let mut client = world.connect_from(CLIENT).await;
    let mut said = [0; 2];
    client.write_all(b"\0\x01").await.expect("the proxy reads");
    soon("an echo", client.read_exact(&mut said)).await.expect("an echo");
    pause();
    let start = tokio::time::Instant::now();
    for _ in 0..4 {
        tokio::time::sleep(TUNNEL_IDLE_TIMEOUT * 3 / 4).await;
        client.write_all(b"\0\x01").await.expect("the proxy reads");
        client.read_exact(&mut said).await.expect("it is still there");
    }
    let end = tokio::time::timeout(TUNNEL_IDLE_TIMEOUT * 4, client.read(&mut said)).await;
    assert!(end.expect("it ends").is_err(), "a reset");
    let silent = start.elapsed() - TUNNEL_IDLE_TIMEOUT * 3;
    assert!(
        (TUNNEL_IDLE_TIMEOUT..=TUNNEL_IDLE_TIMEOUT * 2 + Duration::from_secs(1)).contains(&silent),
        "{silent:?}"
    );
    let record = world.records.recv().await.expect("a record");
    assert_eq!((record.protocol.as_str(), record.error.as_str(), record.bytes_up), ("tcp", "timed out", 10));
}
