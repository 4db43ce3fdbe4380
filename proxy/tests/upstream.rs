//! What is wrong with a server, or on the way to it: told apart, told to programs only where a policy tells anything,
//! and never waited for without end. On both paths of HTTP/2.

mod common;

use common::http2::{Served, connect, server};
use common::{CLIENT, OK, Recorder, Rules, World, shop, soon};
use http::{HeaderMap, Request, Response, StatusCode};
use sluice_policy::{DenyDetail, OnDeny};
use sluice_proxy::limits::{REQUEST_TIMEOUT, STALL_TIMEOUT};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};

const GET: &str = "GET /api HTTP/1.1\r\nHost: cart\r\n\r\n";

fn telling(detail: DenyDetail) -> Rules {
    Rules { on_deny: OnDeny { detail, ..OnDeny::default() }, ..shop() }
}

fn call() -> Request<()> {
    let request =
        Request::post("http://cart/shop.v1.Cart/GetCart").header("content-type", "application/grpc");
    request.body(()).expect("a request")
}

/// The answer's head, over HTTP/2.
async fn ask(world: &World, request: Request<()>) -> (StatusCode, HeaderMap) {
    let client = connect(world).await;
    let (answer, _) = client.clone().send_request(request, true).expect("sent");
    let (head, _) = soon("an answer", answer).await.expect("an answer").into_parts();
    (head.status, head.headers)
}

async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.3:0").await.expect("a free port").local_addr().expect("bound")
}

#[tokio::test]
async fn what_was_wrong_with_a_server_is_told_only_if_asked() {
    let nothing = Recorder::start("connection: close").await.at;
    let garbage = Recorder::start("HTTP/9 connection: close\r\n\r\n").await.at;
    for (at, status, error) in [
        (nobody().await, 503, "connection_refused"),
        (nothing, 502, "http_protocol_error"),
        (garbage, 502, "http_protocol_error"),
    ] {
        for (detail, told) in
            [(DenyDetail::None, false), (DenyDetail::Rule, true), (DenyDetail::NearestMiss, true)]
        {
            let world = World::start(&telling(detail), at).await;
            let expected = format!("sluice; error={error}");
            // Where HTTP/2 fails, what was said before is not always known.
            let others = [&*expected, "sluice; error=connection_terminated"];
            let says = |fields: &HeaderMap| {
                fields.get("proxy-status").is_some_and(|value| {
                    let known =
                        others[..if status == 502 { 2 } else { 1 }].iter().any(|other| value == other);
                    assert!(known, "{value:?} is not {expected}");
                    known
                })
            };
            let answer = world.connect().await.ask(GET).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            let line = format!("\r\nproxy-status: {expected}\r\n");
            assert_eq!(answer.contains(&line), told, "{detail:?} {answer}");
            assert!(told || !answer.contains("proxy-status"), "{answer}");
            let get = Request::get("http://cart/api").body(()).expect("a request");
            let (got, fields) = ask(&world, get).await;
            assert_eq!(got.as_u16(), status, "{error}");
            assert_eq!(says(&fields), told, "{fields:?}");
            let (got, fields) = ask(&world, call()).await;
            assert_eq!((got, &fields["grpc-status"]), (StatusCode::OK, &"14".parse().expect("text")));
            assert_eq!(says(&fields), told, "{fields:?}");
        }
    }
    // A denial is no fault of a server.
    let world = World::start(&telling(DenyDetail::NearestMiss), nobody().await).await;
    let answer = world.connect().await.ask("GET /admin HTTP/1.1\r\nHost: cart\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("proxy-status"), "{answer}");
}

/// Set in the process that has a network of its own, with eight ports.
const INSIDE: &str = "SLUICE_TEST_EIGHT_PORTS";

#[test]
fn a_client_without_a_free_port_is_told_so_and_served_when_there_is_one() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(all_ports());
    }
    // As in the proxy's own namespace, no socket waits after its connection.
    let set_up = "ip link set lo up && echo 40000 40007 > /proc/sys/net/ipv4/ip_local_port_range \
        && echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets && exec \"$@\"";
    let exe = std::env::current_exe().expect("a name");
    let name = "a_client_without_a_free_port_is_told_so_and_served_when_there_is_one";
    let mut inside = Command::new("unshare");
    inside.args(["--net", "sh", "-c", set_up, "sh"]).arg(exe).args([name, "--nocapture"]).env(INSIDE, "1");
    let output = inside.output().expect("unshare, of util-linux");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn all_ports() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&telling(DenyDetail::Rule), server.at).await;
    let mut open = Vec::new();
    let refused = loop {
        // Its own ports are not of the eight.
        let mut stream = connect_from_port(&world, 50_000 + u16::try_from(open.len()).expect("few")).await;
        let answer = exchange(&mut stream).await;
        open.push(stream);
        if !answer.ends_with("\r\n\r\nok") {
            break answer;
        }
        assert_eq!(world.record().await.error, "");
        assert!(open.len() < 9, "more connections than ports");
    };
    assert!(open.len() > 2 && refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("\r\nproxy-status: sluice; error=connection_limit_reached\r\n"), "{refused}");
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.status, record.error.as_str()), ("allow", 503, "no_ports"));
    // One goes, and its port with it: at once, or as soon as the proxy has seen it.
    drop(open.remove(0));
    let mut last = open.pop().expect("the one that was refused");
    soon("a port", async {
        while !exchange(&mut last).await.ends_with("\r\n\r\nok") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn connect_from_port(world: &World, port: u16) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(CLIENT, port)).expect("a port of our own");
    soon("connecting", socket.connect(world.at)).await.expect("the proxy listens")
}

/// Asks, and reads an answer, which comes in one piece.
async fn exchange(stream: &mut tokio::net::TcpStream) -> String {
    stream.write_all(GET.as_bytes()).await.expect("the proxy reads");
    let mut answer = Vec::new();
    loop {
        let length = soon("an answer", stream.read_buf(&mut answer)).await.expect("no reset");
        let text = String::from_utf8_lossy(&answer);
        assert!(length > 0, "{text}");
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && !body.is_empty()
        {
            return text.into_owned();
        }
    }
}

/// From here on time is the test's: it goes on when nothing else does.
fn pause() {
    tokio::time::pause();
}

/// Waits for what is bounded, by the test's time.
async fn in_time<T>(bounded: impl Future<Output = T>) -> T {
    tokio::time::timeout(REQUEST_TIMEOUT * 2, bounded).await.expect("it ends in time")
}

#[tokio::test]
async fn a_request_waits_so_long_for_its_answer_and_no_longer() {
    let server = Recorder::start("").await;
    let mut world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    client.send(GET).await;
    soon("the server", async {
        while server.seen() != GET {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let start = tokio::time::Instant::now();
    pause();
    let mut answer = String::new();
    in_time(client.stream.read_to_string(&mut answer)).await.expect("an answer, then the end");
    assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
    assert!(start.elapsed() >= REQUEST_TIMEOUT);
    let record = world.records.recv().await.expect("a record");
    assert_eq!((record.status, record.error.as_str()), (504, "answer_timeout"));
}

#[tokio::test]
async fn a_body_that_drips_has_so_long_and_no_longer() {
    let server = Recorder::start("").await;
    let mut world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    client.send("POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\nContent-Length: 100000\r\n\r\n").await;
    soon("the server", async {
        while server.seen().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let start = tokio::time::Instant::now();
    pause();
    let (mut read, mut write) = client.stream.into_split();
    let dripping = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(STALL_TIMEOUT / 2).await;
        }
    });
    let mut answer = String::new();
    in_time(read.read_to_string(&mut answer)).await.expect("an answer, then the end");
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(start.elapsed() >= REQUEST_TIMEOUT);
    let record = world.records.recv().await.expect("a record");
    assert_eq!((record.status, record.error.as_str()), (408, "body_timeout"));
    dripping.abort();
}

#[tokio::test]
async fn a_stream_waits_so_long_for_its_answer_and_grpc_as_long_as_it_takes() {
    let (at, mut served) = server().await;
    let mut world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let send = |request: Request<()>, whole| client.clone().send_request(request, whole).expect("sent");
    let mut next = async || soon("the stream", served.recv()).await.expect("a stream");
    let get = || Request::get("http://cart/api").body(()).expect("a request");
    let (watching, _) = send(get(), true);
    let mut watched = next().await;
    let mut watch = watched.respond.send_response(Response::new(()), false).expect("sent");
    let mut watching = soon("a head", watching).await.expect("an answer").into_body();
    let (calling, _) = send(call(), true);
    let mut called = next().await;
    let (unanswered, _) = send(get(), true);
    let _unanswered = next().await;
    let post = Request::post("http://cart/api/v1/checkout").body(()).expect("a request");
    let (unended, _up) = send(post, false);
    let _unended: Served = next().await;
    pause();
    let start = tokio::time::Instant::now();
    assert_eq!(in_time(unanswered).await.expect("an answer").status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(in_time(unended).await.expect("an answer").status(), StatusCode::REQUEST_TIMEOUT);
    assert!(start.elapsed() + Duration::from_secs(1) >= REQUEST_TIMEOUT);
    let mut errors = Vec::new();
    for _ in 0..2 {
        errors.push(world.records.recv().await.expect("a record").error);
    }
    errors.sort();
    assert_eq!(errors, ["answer_timeout", "body_timeout"]);
    // What streams already, and what says its own deadline, goes on.
    tokio::time::sleep(REQUEST_TIMEOUT).await;
    tokio::time::resume();
    watch.send_data("still".into(), true).expect("sent");
    assert_eq!(soon("data", watching.data()).await.expect("data").expect("no reset"), "still");
    let answer = Response::builder().header("grpc-status", "0").body(()).expect("a response");
    called.respond.send_response(answer, true).expect("sent");
    assert_eq!(soon("an answer", calling).await.expect("an answer").headers()["grpc-status"], "0");
}

/// A server that hands over its connections.
async fn accepting() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    (listener, at)
}

/// Makes the coming close a reset.
fn cut(stream: tokio::net::TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(stream);
}

async fn head(stream: &mut tokio::net::TcpStream) -> String {
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(soon("a head", stream.read_u8()).await.expect("a head"));
    }
    String::from_utf8(said).expect("text")
}

#[tokio::test]
async fn a_half_close_goes_across_http1_and_so_does_a_reset() {
    let (listener, at) = accepting().await;
    let world = World::start(&shop(), at).await;
    // The client has said all: the server hears it, and its answer comes back.
    let mut client = world.connect().await;
    client.send(GET).await;
    client.stream.shutdown().await.expect("half-close");
    let (mut server, _) = soon("the proxy", listener.accept()).await.expect("the proxy");
    head(&mut server).await;
    assert_eq!(soon("the end", server.read(&mut [0])).await.expect("in order"), 0);
    server.write_all(OK.as_bytes()).await.expect("sent");
    assert_eq!(client.answer().await, OK);
    assert_eq!(client.rest().await.expect("closed in order"), b"");
    // The client breaks off in its body: the server must not take it for the end.
    let mut client = world.connect().await;
    client.send("POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let (mut server, _) = soon("the proxy", listener.accept()).await.expect("the proxy");
    head(&mut server).await;
    cut(client.stream);
    assert!(soon("the reset", server.read(&mut [0])).await.is_err());
    // The server breaks off in its answer: the client must not take it for the end.
    let mut client = world.connect().await;
    client.send(GET).await;
    let (mut server, _) = soon("the proxy", listener.accept()).await.expect("the proxy");
    head(&mut server).await;
    server.write_all(b"HTTP/1.1 200 OK\r\n\r\nto the e").await.expect("sent");
    let mut said = vec![0; b"HTTP/1.1 200 OK\r\n\r\nto the e".len()];
    soon("the beginning", client.stream.read_exact(&mut said)).await.expect("the beginning");
    cut(server);
    assert!(client.rest().await.is_err());
}

#[tokio::test]
async fn a_half_close_goes_across_a_tunnel_and_so_does_a_reset() {
    let (listener, at) = accepting().await;
    let world = World::start(&Rules { plain: true, ..shop() }, at).await;
    let next = async || {
        let mut client = world.connect_from(CLIENT).await;
        client.write_all(b"\0").await.expect("the proxy reads");
        let (mut server, _) = soon("the proxy", listener.accept()).await.expect("the proxy");
        assert_eq!(soon("a byte", server.read_u8()).await.expect("a byte"), 0);
        (client, server)
    };
    for from_server in [false, true] {
        let (client, server) = next().await;
        let (mut first, mut second) = if from_server { (server, client) } else { (client, server) };
        first.shutdown().await.expect("half-close");
        assert_eq!(soon("the end", second.read(&mut [0])).await.expect("in order"), 0);
        second.write_all(b"still here").await.expect("the other half is open");
        second.shutdown().await.expect("half-close");
        let mut said = String::new();
        soon("the rest", first.read_to_string(&mut said)).await.expect("in order");
        assert_eq!(said, "still here");
        let (client, server) = next().await;
        let (first, mut second) = if from_server { (server, client) } else { (client, server) };
        cut(first);
        assert!(soon("the reset", second.read(&mut [0])).await.is_err(), "{from_server}");
    }
}

#[tokio::test]
async fn what_is_open_over_http2_ends_with_the_connection_of_either_end() {
    let (at, mut served) = server().await;
    let mut world = World::start(&shop(), at).await;
    let stream = world.connect_from(CLIENT).await;
    let (client, connection) = h2::client::handshake(stream).await.expect("a handshake");
    let connection = tokio::spawn(async move { drop(connection.await) });
    let get = Request::get("http://cart/api/watch").body(()).expect("a request");
    let (answer, _) = client.clone().send_request(get, true).expect("sent");
    let mut stream: Served = soon("the stream", served.recv()).await.expect("a stream");
    let mut down = stream.respond.send_response(Response::new(()), false).expect("sent");
    soon("an answer", answer).await.expect("an answer");
    connection.abort();
    drop(client);
    let gone = std::future::poll_fn(|cx| down.poll_reset(cx));
    // A reset of the stream, or the end of its connection.
    let _ = soon("the end", gone).await;
    assert_eq!(world.record().await.error, "client_closed");
    // And the server's: half an answer is not a whole one.
    let (listener, at) = accepting().await;
    let world = World::start(&shop(), at).await;
    let client = connect(&world).await;
    let get = Request::get("http://cart/api/watch").body(()).expect("a request");
    let (answer, _) = client.clone().send_request(get, true).expect("sent");
    let (server, _) = soon("the proxy", listener.accept()).await.expect("the proxy");
    let mut server = h2::server::handshake(server).await.expect("a handshake");
    let (_, mut respond) = soon("the stream", server.accept()).await.expect("a stream").expect("a stream");
    let mut down = respond.send_response(Response::new(()), false).expect("sent");
    down.send_data("half".into(), false).expect("sent");
    let serving = tokio::spawn(async move { while server.accept().await.is_some() {} });
    let mut body = soon("an answer", answer).await.expect("an answer").into_body();
    assert_eq!(soon("data", body.data()).await.expect("data").expect("data"), "half");
    serving.abort();
    assert!(soon("the end", body.data()).await.expect("no end in order").is_err());
}
