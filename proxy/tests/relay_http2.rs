//! What is the relay's alone: bytes that go on as they came, tables that part, limits on what costs its sender nothing.

mod common;

use common::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, SETTINGS, block, connect, first, frame,
    raw_http2, server,
};
use common::{World, shop, soon};
use http::{Request, Response};
use sluice_proxy::http2::frame::{Frame, HEAD_BYTES, Head, code, flag, kind};
use sluice_proxy::http2::hpack::{Decoder, FLUSH};
use sluice_proxy::limits::{
    H2_BLOCK_FRAMES, H2_CONTROL_FRAMES, H2_PINGS, H2_RESETS, H2_SETTINGS, H2_STREAM_WINDOW, H2_STREAMS,
};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A frame as it came.
type Raw = (Head, Vec<u8>);

async fn next(stream: &mut TcpStream) -> Option<Raw> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await.ok()?;
    let head = Head::read(&head).expect("a frame").expect("whole");
    let mut payload = vec![0; head.length];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head, payload))
}

/// A server that says these settings, and hands over every frame on a stream, and the socket's other half for answers.
async fn raw_server(settings: &'static [u8]) -> (SocketAddr, mpsc::Receiver<Raw>, mpsc::Sender<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let (frames, seen) = mpsc::channel(4096);
    let (answers, mut to_send) = mpsc::channel::<Vec<u8>>(16);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the proxy");
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.expect("a preface");
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.expect("sent");
        loop {
            tokio::select! {
                answer = to_send.recv() => {
                    let Some(answer) = answer else { return };
                    stream.write_all(&answer).await.expect("the proxy reads");
                }
                raw = next(&mut stream) => {
                    let Some(raw) = raw else { return };
                    if raw.0.stream > 0 && raw.0.kind != kind::WINDOW_UPDATE && frames.send(raw).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    (at, seen, answers)
}

fn head(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "cart")])
}

/// The same, and a field that enters the table.
fn indexing(path: &str, name: u8) -> Vec<u8> {
    let mut block = head(path);
    block.extend([0x40, 1, name, 1, b'v']);
    block
}

async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("the proxy reads");
}

async fn got(seen: &mut mpsc::Receiver<Raw>) -> Raw {
    soon("a frame", seen.recv()).await.expect("the server lives")
}

#[tokio::test]
async fn the_clients_own_bytes_go_on() {
    let (at, mut seen, answers) = raw_server(b"").await;
    let world = World::start(&shop(), at).await;
    let mut client = raw_http2(&world).await;
    send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &indexing("/api/first", b'a'))).await;
    assert_eq!(got(&mut seen).await.1, indexing("/api/first", b'a'));
    // Padding, priority, a reference to the table, and a body with padding of its own: each frame as it was.
    let mut block = head("/api/second");
    block.push(0x80 | 62);
    let mut payload = vec![3, 0, 0, 0, 0, 9];
    payload.extend_from_slice(&block);
    payload.extend([0; 3]);
    let flags = END_HEADERS | flag::PADDED | flag::PRIORITY;
    send(&mut client, &frame(HEADERS, flags, 3, &payload)).await;
    send(&mut client, &frame(DATA, END_STREAM | flag::PADDED, 3, b"\x02body\0\0")).await;
    let (first, second) = (got(&mut seen).await, got(&mut seen).await);
    assert_eq!((first.0.kind, first.0.flags, first.0.stream, first.1), (HEADERS, flags, 3, payload));
    assert_eq!((second.0.flags, second.1), (END_STREAM | flag::PADDED, b"\x02body\0\0".to_vec()));
    // And the server's to the client.
    let answer = frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x88, 0x40, 1, b's', 1, b'v']);
    answers.send(answer.clone()).await.expect("the server lives");
    soon("the answer", async {
        loop {
            let (head, payload) = next(&mut client).await.expect("a frame");
            if head.kind == HEADERS {
                return assert_eq!(frame(head.kind, head.flags, head.stream, &payload), answer);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn tables_part_with_the_first_block_that_does_not_go_on() {
    let (at, mut seen, _answers) = raw_server(b"").await;
    let world = World::start(&shop(), at).await;
    let mut client = raw_http2(&world).await;
    send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &indexing("/api/1", b'a'))).await;
    assert_eq!(got(&mut seen).await.1, indexing("/api/1", b'a'));
    // Denied, and no table has changed: what follows goes on as it comes.
    send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, 3, &head("/admin"))).await;
    send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, 5, &indexing("/api/2", b'b'))).await;
    assert_eq!(got(&mut seen).await.1, indexing("/api/2", b'b'));
    // Denied, and the client's table has a field that the server's has not.
    send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, 7, &indexing("/admin", b'c'))).await;
    let mut referring = head("/api/3");
    // c, b and a by reference; d enters the table; e must never.
    referring.extend([0x80 | 62, 0x80 | 63, 0x80 | 64, 0x40, 1, b'd', 1, b'v', 0x10, 1, b'e', 1, b'v']);
    for stream in [9, 11] {
        let mut referring = referring.clone();
        if stream == 11 {
            // Everything is one further, for d.
            let at = referring.len() - 13;
            referring[at..at + 3].iter_mut().for_each(|index| *index += 1);
        }
        send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, stream, &referring)).await;
        let (_, block) = got(&mut seen).await;
        assert_eq!(block[0] == FLUSH, stream == 9, "the server's table is emptied, once");
        let block = block.strip_prefix(&[FLUSH]).unwrap_or(&block);
        let read = Decoder::default().decode(block, 1 << 16).expect("needs no table");
        let names: Vec<_> = read.lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, [":method", ":scheme", ":path", ":authority", "c", "b", "a", "d", "e"]);
        assert!(!read.changed, "nothing enters the server's table");
        assert!(block.ends_with(&[0x10, 1, b'e', 1, b'v']), "what must never be indexed says so");
    }
}

#[tokio::test]
async fn a_server_with_a_smaller_table_gets_blocks_that_need_none() {
    let (at, mut seen, _answers) = raw_server(&[0, 1, 0, 0, 0, 0]).await;
    let world = World::start(&shop(), at).await;
    let mut client = raw_http2(&world).await;
    send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &indexing("/api/1", b'a'))).await;
    let (_, block) = got(&mut seen).await;
    let read = Decoder::default().decode(&block, 1 << 16).expect("a block");
    assert_eq!((block[0], read.lines.len()), (FLUSH, 5));
    let block = block.strip_prefix(&[FLUSH]).expect("it is");
    assert!(!Decoder::default().decode(block, 1 << 16).expect("a block").changed);
}

#[tokio::test]
async fn a_server_gets_no_more_streams_than_it_takes() {
    // MAX_CONCURRENT_STREAMS 2.
    let (at, mut seen, answers) = raw_server(&[0, 3, 0, 0, 0, 2]).await;
    let world = World::start(&shop(), at).await;
    let mut client = raw_http2(&world).await;
    for stream in [1, 3, 5, 7] {
        send(&mut client, &frame(HEADERS, END_HEADERS, stream, &indexing("/api/x", b'a'))).await;
        send(&mut client, &frame(DATA, END_STREAM, stream, &[u8::try_from(stream).expect("small")])).await;
    }
    let mut bodies = Vec::new();
    for answered in [0, 1, 3, 5] {
        if answered > 0 {
            let answer = frame(HEADERS, END_HEADERS | END_STREAM, answered, &[0x88]);
            answers.send(answer).await.expect("the server lives");
        }
        while bodies.len()
            < if answered == 0 { 2 } else { 2 + usize::try_from(answered).expect("small").div_ceil(2) }
            && bodies.len() < 4
        {
            let (head, payload) = got(&mut seen).await;
            if head.kind == DATA {
                bodies.push((head.stream, payload));
            }
        }
        // Nothing more until one has ended.
        tokio::task::yield_now().await;
        assert!(seen.try_recv().is_err(), "{bodies:?}");
    }
    assert_eq!(bodies, [(1, vec![1]), (3, vec![3]), (5, vec![5]), (7, vec![7])]);
}

/// Sends until the proxy has had enough, and returns the code of its GOAWAY.
async fn enough(mut client: TcpStream, frames: Vec<u8>) -> Option<u32> {
    let (mut read, mut write) = client.split();
    // It may close before it has read all.
    let sending = async { drop(write.write_all(&frames).await) };
    let hearing = async {
        loop {
            let mut head = [0; HEAD_BYTES];
            read.read_exact(&mut head).await.ok()?;
            let head = Head::read(&head).expect("a frame").expect("whole");
            let mut payload = vec![0; head.length];
            read.read_exact(&mut payload).await.ok()?;
            if let Ok(Frame::GoAway(_, code)) = Frame::read(&head, &payload) {
                return Some(code);
            }
        }
    };
    soon("GOAWAY", async { tokio::join!(sending, hearing).1 }).await
}

#[tokio::test]
async fn floods_end_their_connection_and_no_other() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    // Twice the burst: time passes meanwhile, and brings some.
    let repeated = |count: u32, one: &dyn Fn(u32) -> Vec<u8>| (0..count).flat_map(one).collect::<Vec<u8>>();
    let open = frame(HEADERS, END_HEADERS, 1, &head("/admin"));
    let resets = repeated(H2_RESETS.burst * 2, &|number| {
        let mut both = frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &head("/admin"));
        both.extend(frame(RST_STREAM, 0, number * 2 + 1, &[0, 0, 0, 8]));
        both
    });
    // The proxy resets, for a window of 0 more.
    let provoked = repeated(H2_RESETS.burst * 2, &|number| {
        let mut both = frame(HEADERS, END_HEADERS, number * 2 + 1, &head("/admin"));
        both.extend(frame(kind::WINDOW_UPDATE, 0, number * 2 + 1, &[0; 4]));
        both
    });
    let mut endless = frame(HEADERS, 0, 1, &head("/api"));
    endless.extend(repeated(H2_BLOCK_FRAMES, &|_| frame(CONTINUATION, 0, 1, b"")));
    let control = H2_CONTROL_FRAMES.burst * 2;
    let with_open = |frames: Vec<u8>| [open.clone(), frames].concat();
    for (what, frames) in [
        ("rapid reset", resets),
        ("resets that are provoked", provoked),
        ("CONTINUATION", endless),
        ("SETTINGS", repeated(H2_SETTINGS.burst * 2, &|_| frame(SETTINGS, 0, 0, b""))),
        ("PING", repeated(H2_PINGS.burst * 2, &|_| frame(kind::PING, 0, 0, &[0; 8]))),
        ("empty DATA", with_open(repeated(control, &|_| frame(DATA, 0, 1, b"")))),
        ("PRIORITY", repeated(control, &|_| frame(kind::PRIORITY, 0, 5, &[0; 5]))),
        ("WINDOW_UPDATE", repeated(control, &|_| frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("unknown frames", repeated(control, &|_| frame(0xfa, 0, 0, b""))),
    ] {
        let client = raw_http2(&world).await;
        assert_eq!(enough(client, frames).await, Some(code::ENHANCE_YOUR_CALM), "{what}");
    }
    assert!(served.try_recv().is_err(), "nothing of it came to the server");
    let mut client =
        soon("a free stream", connect(&world).await.ready()).await.expect("the connection lives");
    let request = Request::get("http://cart/api").body(()).expect("a request");
    let (answer, _) = client.send_request(request, true).expect("sent");
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    stream.respond.send_response(Response::new(()), true).expect("sent");
    assert_eq!(soon("an answer", answer).await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn nothing_is_taken_of_a_server_for_a_client_that_takes_nothing() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let mut client = world.connect_from(common::CLIENT).await;
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // INITIAL_WINDOW_SIZE 0.
    out.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for number in 0..H2_STREAMS {
        out.extend(frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &head("/api/large")));
    }
    send(&mut client, &out).await;
    let poured = Arc::new(AtomicUsize::new(0));
    for _ in 0..H2_STREAMS {
        let mut stream = soon("the stream", served.recv()).await.expect("a stream");
        let mut body = stream.respond.send_response(Response::new(()), false).expect("sent");
        let poured = poured.clone();
        tokio::spawn(async move {
            loop {
                body.reserve_capacity(16 * 1024);
                let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { return };
                poured.fetch_add(room, Ordering::SeqCst);
                let _ = body.send_data(vec![b'x'; room].into(), false);
            }
        });
    }
    // One of them takes something after all: it gets that, and the others still nothing.
    send(&mut client, &frame(kind::WINDOW_UPDATE, 0, 7, &[0, 0, 3, 0xe8])).await;
    let length = soon("data", async {
        loop {
            let (head, payload) = next(&mut client).await.expect("a frame");
            if head.kind == DATA {
                assert_eq!(head.stream, 7);
                return payload.len();
            }
        }
    })
    .await;
    assert_eq!(length, 1000);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(poured.load(Ordering::SeqCst), 1000, "no stream's server was let run ahead");
}

/// The window is counted, for a stream and for all together.
#[tokio::test]
async fn a_client_that_ignores_its_window_is_reset() {
    let (at, mut seen, _answers) = raw_server(&[0, 4, 0, 0, 0, 0]).await;
    let world = World::start(&shop(), at).await;
    let mut client = raw_http2(&world).await;
    let mut out = frame(HEADERS, END_HEADERS, 1, &head("/api"));
    for _ in 0..=H2_STREAM_WINDOW / 16_384 {
        out.extend(frame(DATA, 0, 1, &[b'x'; 16_384]));
    }
    send(&mut client, &out).await;
    assert_eq!(first(&mut client, &[RST_STREAM]).await, Some(RST_STREAM));
    assert_eq!(got(&mut seen).await.0.kind, HEADERS);
    let (head, payload) = got(&mut seen).await;
    assert_eq!(
        (head.kind, payload),
        (RST_STREAM, vec![0, 0, 0, 3]),
        "no byte of it beyond the server's window"
    );
}

#[tokio::test]
async fn a_client_that_is_silent_at_the_last_call_is_told_how_far_we_came() {
    let (at, mut served) = server().await;
    let world = World::start(&shop(), at).await;
    let mut client = raw_http2(&world).await;
    send(&mut client, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("/api"))).await;
    let mut stream = soon("the stream", served.recv()).await.expect("a stream");
    stream.respond.send_response(Response::new(()), true).expect("sent");
    assert_eq!(first(&mut client, &[HEADERS]).await, Some(HEADERS));
    let proxy = world.proxy.clone();
    tokio::spawn(async move { proxy.drain(common::DEADLINE).await });
    let mut said = Vec::new();
    while let Some((head, payload)) = soon("a frame", next(&mut client)).await {
        if head.kind == kind::GOAWAY {
            said.push(u32::from_be_bytes(payload[..4].try_into().expect("four bytes")));
        }
    }
    // What comes after the first one is still served; what comes after the second may be sent again.
    assert_eq!(said, [0x7fff_ffff, 1]);
}
