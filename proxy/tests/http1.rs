//! HTTP/1 through the proxy, on real sockets: what reaches the server, and what the client is told.

mod common;

use common::{CART, CLIENT, Client, INTRUDER, OK, Recorder, World, shop, snapshot, soon};
use sluice_policy::{DenyDetail, Endpoint, Mode, OnDeny, Snapshot, Workload};
use sluice_proxy::limits::{DRAIN_LULL, HANDED_OVER_TIMEOUT};
use sluice_proxy::telemetry::sampler::Sampler;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")
}

#[tokio::test]
async fn a_denial_tells_what_the_policy_lets_it() {
    let by = "by L7NetworkPolicy/shop/cart";
    for (detail, told) in [
        (DenyDetail::None, String::new()),
        (DenyDetail::Rule, format!(" {by}")),
        (
            DenyDetail::NearestMiss,
            format!(" {by}; nearest is rule frontend: method DELETE not in [GET, HEAD]"),
        ),
    ] {
        let server = Recorder::start(OK).await;
        let rules = common::Rules { on_deny: OnDeny { detail, ..OnDeny::default() }, ..shop() };
        let world = World::start(&rules, server.at).await;
        let mut client = world.connect().await;
        let denied = client.ask("DELETE /api HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let body = format!("access denied: no_rule_matched{told}\n");
        assert!(denied.contains(&format!("content-length: {}\r\n", body.len())), "{denied}");
        assert_eq!(denied.split_once("\r\n\r\n").map(|(_, body)| body), Some(body.as_str()));
        assert_eq!(client.ask(get("/api")).await, OK, "the connection goes on");
    }
}

#[tokio::test]
async fn each_request_of_a_connection_is_judged_and_a_denied_one_reaches_nobody() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    let first = "GET /api/v1/items HTTP/1.1\r\nhOsT: cart\r\nX-ODD-Case:  v \r\naccept: */*\r\n\r\n";
    assert_eq!(client.ask(first).await, OK, "not a byte of the answer is changed");
    let denied = client.ask("DELETE /api/v1/items HTTP/1.1\r\nHost: cart\r\nX-Secret: s3\r\n\r\n").await;
    assert!(denied.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{denied}");
    assert!(denied.ends_with("access denied: no_rule_matched\n"), "{denied}");
    assert!(!denied.contains("cart") && !denied.contains("connection: close"), "{denied}");
    let body = client.ask("POST /other HTTP/1.1\r\nHost: cart\r\nContent-Length: 6\r\n\r\nsecret").await;
    assert!(body.starts_with("HTTP/1.1 403"), "{body}");
    assert_eq!(client.ask(get("/api/v2")).await, OK, "the connection goes on after a denial");
    assert_eq!(server.seen(), first.to_owned() + &get("/api/v2"), "byte for byte, and nothing of the denied");
    assert_eq!(server.peers().iter().map(std::net::SocketAddr::ip).collect::<Vec<_>>(), [CLIENT]);
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.status, record.rule.as_str()), ("allow", 200, "frontend"));
    assert_eq!((record.source.pod.as_str(), record.destination.pod.as_str()), ("frontend", "cart"));
    assert_eq!(
        (record.method.as_str(), record.path.as_str(), record.bytes_down),
        ("GET", "/api/v1/items", 2)
    );
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.status), ("deny", 403));
    assert_eq!(record.policy, "L7NetworkPolicy/shop/cart");
    assert_eq!(record.nearest_miss, "method DELETE not in [GET, HEAD]");
    assert_eq!(world.records.dropped(), 0);
}

#[tokio::test]
async fn pipelined_requests_are_judged_one_by_one() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    client.send(get("/api/1") + &get("/admin") + &get("/api/2")).await;
    assert_eq!(client.answer().await, OK);
    assert!(client.answer().await.starts_with("HTTP/1.1 403"));
    assert_eq!(client.answer().await, OK);
    assert_eq!(server.seen(), get("/api/1") + &get("/api/2"));
}

#[tokio::test]
async fn smuggled_requests_are_refused_before_a_byte_goes_on() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    let head = "POST /api/v1/checkout HTTP/1.1\r\nHost: cart\r\n";
    for rest in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG",
        "Content-Length: 6\r\nContent-Length: 5\r\n\r\n0\r\n\r\nG",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Content-Length : 6\r\n\r\nGET / ",
        "Transfer-Encoding\n: chunked\r\n\r\n",
        "Host: admin\r\n\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut client = world.connect().await;
        client.send(format!("{head}{rest}")).await;
        let answer = String::from_utf8(client.rest().await.expect("an answer, then the end")).expect("text");
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{rest:?}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{rest:?}: one answer, {answer}");
        let record = world.record().await;
        assert_eq!((record.verdict.as_str(), record.reason.as_str()), ("deny", "parse_error"));
    }
    assert_eq!(server.seen(), "");
    assert!(server.peers().is_empty(), "nobody was dialled");
}

#[tokio::test]
async fn a_broken_chunk_never_completes_at_the_server() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    client
        .send("POST /api/v1/checkout HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX")
        .await;
    client.send("\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n").await;
    // The server may have answered its head already; it must never see a last chunk or what follows.
    let _ = client.rest().await;
    let seen = server.seen();
    assert!(!seen.contains("0\r\n\r\n") && !seen.contains("/admin"), "{seen}");
}

#[tokio::test]
async fn the_path_that_was_judged_goes_on() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    assert_eq!(client.ask(get("/x/../api/%61?q=/../z")).await, OK);
    assert!(client.ask(get("/api/..%2fadmin")).await.starts_with("HTTP/1.1 403"));
    assert!(client.ask(get("/api/../admin")).await.starts_with("HTTP/1.1 403"));
    assert_eq!(server.seen(), get("/api/a?q=/../z"));
}

#[tokio::test]
async fn an_unknown_peer_and_a_peer_without_a_rule_are_reset_at_once() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    let mut stream = world.connect_from(INTRUDER).await;
    let mut buf = [0; 16];
    let read = soon("a reset", stream.read(&mut buf)).await;
    assert_eq!(read.expect_err("reset").kind(), std::io::ErrorKind::ConnectionReset);
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.reason.as_str()), ("deny", "default_deny"));
    assert_eq!(record.protocol, "tcp");
}

#[tokio::test]
async fn what_is_not_http_is_refused_where_requests_are_judged() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    for bytes in [&b"\x16\x03\x01\x00\x05\x02aaaa"[..], b"EHLO there\r\n", b"GET key\r\n"] {
        let mut client = world.connect().await;
        client.send(bytes).await;
        assert!(client.rest().await.is_err(), "reset");
        let record = world.record().await;
        assert_eq!((record.verdict.as_str(), record.reason.as_str()), ("deny", "parse_error"));
    }
    assert!(server.peers().is_empty());
}

#[tokio::test]
async fn audited_policies_let_everything_pass_and_say_what_they_would_deny() {
    let server = Recorder::start(OK).await;
    let audit = common::Rules { mode: Mode::Audit, ..shop() };
    let mut world = World::start(&audit, server.at).await;
    let mut client = world.connect().await;
    assert_eq!(client.ask(get("/admin")).await, OK);
    let record = world.record().await;
    assert_eq!(record.verdict, "audit");
    assert_eq!(record.would_deny[0].policy, "L7NetworkPolicy/shop/cart");
    assert_eq!(record.would_deny[0].nearest_miss, "path /admin does not match PathPrefix /api");
    // Malformed, and TLS: passed on as they are.
    let odd = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    let mut client = world.connect().await;
    assert_eq!(client.ask(odd).await, OK);
    drop(client);
    let record = world.record().await;
    assert_eq!((record.protocol.as_str(), record.verdict.as_str()), ("tcp", "audit"));
    assert!(server.seen().ends_with(odd));
}

#[tokio::test]
async fn a_server_that_speaks_first_does_not_wait_for_us() {
    let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.write_all(b"220 hello\r\n").await.expect("sent");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.expect("half-closed");
        stream.write_all(b"221 bye\r\n").await.expect("the other half is open");
        said
    });
    let rules = common::Rules { plain: true, ..shop() };
    let mut world = World::start(&rules, at).await;
    let mut client = world.connect().await;
    let mut greeting = [0; 11];
    soon("the greeting", client.stream.read_exact(&mut greeting)).await.expect("a greeting");
    client.send("QUIT\r\n").await;
    client.stream.shutdown().await.expect("half-close");
    assert_eq!(client.rest().await.expect("the rest"), b"221 bye\r\n");
    assert_eq!(soon("the server", served).await.expect("no panic"), b"QUIT\r\n");
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.bytes_up, record.bytes_down), ("allow", 6, 20));
}

#[tokio::test]
async fn upgrades_and_tunnels_are_refused() {
    let server = Recorder::start("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    let websocket = "GET /api HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(client.ask(websocket).await.ends_with("access denied: no_rule_matched\n"));
    assert_eq!(client.rest().await.expect("closed"), b"");
    let mut client = world.connect().await;
    assert!(client.ask("CONNECT c:443 HTTP/1.1\r\nHost: c:443\r\n\r\n").await.starts_with("HTTP/1.1 403"));
    assert_eq!(server.seen(), "");
    let mut client = world.connect().await;
    let answer = client.ask(get("/api")).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "an unrequested 101: {answer}");
    assert_eq!(client.rest().await.expect("closed"), b"");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_so() {
    let closed =
        tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port").local_addr().expect("bound");
    let mut world = World::start(&shop(), closed).await;
    let mut client = world.connect().await;
    assert!(client.ask(get("/api")).await.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    assert!(client.ask(get("/api")).await.starts_with("HTTP/1.1 503"), "the connection stays");
    assert_eq!(world.record().await.error, "unreachable");
}

#[tokio::test]
async fn interim_answers_and_expectations_pass() {
    let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut said = vec![0; 4096];
        let length = stream.read(&mut said).await.expect("a head");
        assert!(said[..length].ends_with(b"\r\n\r\n"), "the body waits");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("sent");
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.expect("the body");
        assert_eq!(&body, b"hello");
        stream.write_all(OK.as_bytes()).await.expect("sent");
    });
    let world = World::start(&shop(), at).await;
    let mut client = world.connect().await;
    let head =
        "POST /api/v1/checkout HTTP/1.1\r\nHost: c\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(client.ask(head).await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.ask("hello").await, OK);
}

#[tokio::test]
async fn the_servers_close_is_the_clients() {
    let server = Recorder::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    assert!(client.ask(get("/api")).await.ends_with("ok"));
    assert_eq!(client.rest().await.expect("closed in order"), b"");
    let server = Recorder::start("HTTP/1.1 200 OK\r\n\r\nto the end; connection: close").await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    client.send(get("/api")).await;
    let answer = client.rest().await.expect("closed in order");
    assert_eq!(answer, b"HTTP/1.1 200 OK\r\n\r\nto the end; connection: close");
}

#[tokio::test]
async fn a_swap_cuts_what_it_denies_and_leaves_the_rest() {
    let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let (asked, mut asks) = tokio::sync::mpsc::channel(2);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut said = [0; 4096];
            let length = stream.read(&mut said).await.expect("a head");
            asked.send(said[..length].to_vec()).await.expect("the test listens");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf ").await.expect("sent");
            open.push(stream);
        }
    });
    let mut world = World::start(&shop(), at).await;
    let mut kept = world.connect().await;
    let mut streaming = world.connect().await;
    streaming.send("POST /api/v1/checkout HTTP/1.1\r\nHost: c\r\n\r\n").await;
    asks.recv().await.expect("asked");
    kept.send(get("/api/watch")).await;
    asks.recv().await.expect("asked");
    let mut half = [0; b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf ".len()];
    soon("half", kept.stream.read_exact(&mut half)).await.expect("half an answer");
    soon("half", streaming.stream.read_exact(&mut half)).await.expect("half an answer");
    let mut only_get = shop();
    only_get.http.truncate(1);
    assert_eq!(world.proxy.state.swap(snapshot(2, &only_get)), 1, "the POST alone");
    assert!(streaming.rest().await.is_err(), "half an answer must not look whole");
    assert_eq!(world.proxy.state.open_flows(), 1, "the GET goes on");
    let record = world.record().await;
    assert_eq!((record.method.as_str(), record.error.as_str()), ("POST", "revoked"));
    assert_eq!((record.verdict.as_str(), record.status), ("deny", 200));
}

#[tokio::test]
async fn a_request_that_is_cut_before_its_answer_costs_no_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let (asked, mut asks) = tokio::sync::mpsc::channel(2);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let length = stream.read(&mut [0; 4096]).await.expect("a head");
        asked.send(length).await.expect("the test listens");
        // Never answers: the next thing it hears is the end.
        stream.read(&mut [0; 16]).await
    });
    let mut world = World::start(&shop(), at).await;
    let mut client = world.connect().await;
    client.send(get("/api/slow")).await;
    asks.recv().await.expect("asked");
    let nothing = common::Rules { http: Vec::new(), ..shop() };
    assert_eq!(world.proxy.state.swap(snapshot(2, &nothing)), 1);
    assert!(client.answer().await.starts_with("HTTP/1.1 403 "));
    let ended = soon("the server's end", server).await.expect("no panic");
    assert_eq!(ended.expect_err("reset").kind(), std::io::ErrorKind::ConnectionReset);
    assert!(client.ask(get("/api")).await.starts_with("HTTP/1.1 403 "), "the connection goes on");
    let record = world.record().await;
    assert_eq!((record.status, record.error.as_str(), record.verdict.as_str()), (403, "revoked", "deny"));
}

/// The same snapshot, with another pod at this address. Its name and what it may do are the same.
fn made_again(address: IpAddr) -> Arc<Snapshot> {
    let mut snapshot = (*snapshot(2, &shop())).clone();
    let other = |was: &Workload| Arc::new(Workload { uid: "another".into(), ..was.clone() });
    snapshot.workloads.iter_mut().filter(|(at, _)| **at == address).for_each(|(_, pod)| *pod = other(pod));
    let endpoints = snapshot.endpoints.iter().map(|endpoint| {
        let workload = if endpoint.addresses.contains(&address) {
            other(&endpoint.workload)
        } else {
            endpoint.workload.clone()
        };
        Arc::new(Endpoint { workload, ..(**endpoint).clone() })
    });
    snapshot.endpoints = endpoints.collect();
    Arc::new(snapshot)
}

#[tokio::test]
async fn what_is_open_with_a_pod_that_was_made_again_is_cut_whatever_the_next_one_may_do() {
    for address in [CLIENT, CART] {
        let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.expect("a port");
        let at = listener.local_addr().expect("bound");
        let (asked, mut asks) = tokio::sync::mpsc::channel(2);
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let length = stream.read(&mut [0; 4096]).await.expect("a head");
            asked.send(length).await.expect("the test listens");
            stream.read(&mut [0; 16]).await
        });
        let mut world = World::start(&shop(), at).await;
        assert_eq!(world.proxy.state.swap(snapshot(1, &shop())), 0, "nobody has left");
        let mut client = world.connect().await;
        client.send(get("/api/slow")).await;
        asks.recv().await.expect("asked");
        assert_eq!(world.proxy.state.swap(snapshot(2, &shop())), 0, "nobody has left");
        assert_eq!(world.proxy.state.swap(made_again(address)), 1, "{address}");
        let ended = soon("the server's end", server).await.expect("no panic");
        assert_eq!(ended.expect_err("reset").kind(), std::io::ErrorKind::ConnectionReset);
        let record = world.record().await;
        assert_eq!((record.error.as_str(), record.reason.as_str()), ("revoked", "identity_missing"));
        assert_eq!(record.generation, 1, "what it was judged by first");
    }
}

#[tokio::test]
async fn draining_ends_connections_after_their_answer() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let mut idle = world.connect().await;
    assert_eq!(idle.ask(get("/api")).await, OK);
    let mut busy = world.connect().await;
    busy.send("GET /api HTTP/1.1\r\nHost:").await;
    let mut between = world.connect().await;
    assert_eq!(between.ask(get("/api")).await, OK);
    let proxy = world.proxy.clone();
    let drained = tokio::spawn(async move { proxy.drain(common::DEADLINE).await });
    // One that is between two requests has not heard yet: its next one is served, and is the last.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let answer = between.ask(get("/api")).await;
    assert!(answer.contains("\r\nconnection: close\r\n") && answer.ends_with("ok"), "{answer}");
    assert_eq!(between.rest().await.expect("closed in order"), b"");
    assert_eq!(idle.rest().await.expect("closed in order"), b"");
    let answer = busy.ask(" c\r\n\r\n").await;
    assert!(answer.contains("\r\nconnection: close\r\n") && answer.ends_with("ok"), "{answer}");
    assert_eq!(busy.rest().await.expect("closed in order"), b"");
    assert_eq!(soon("draining", drained).await.expect("no panic"), 0, "nothing was cut");
}

#[tokio::test]
async fn a_proxy_that_handed_over_lets_its_idle_clients_speak() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let mut idle = world.connect().await;
    assert_eq!(idle.ask(get("/api")).await, OK);
    let mut silent = world.connect().await;
    let proxy = world.proxy.clone();
    let drained = tokio::spawn(async move { proxy.drain(HANDED_OVER_TIMEOUT).await });
    // One that is stopped would have closed them by then.
    tokio::time::sleep(DRAIN_LULL + DRAIN_LULL / 2).await;
    for client in [&mut idle, &mut silent] {
        let answer = client.ask(get("/api")).await;
        assert!(answer.contains("\r\nconnection: close\r\n") && answer.ends_with("ok"), "{answer}");
        assert_eq!(client.rest().await.expect("closed in order"), b"");
    }
    assert_eq!(soon("draining", drained).await.expect("no panic"), 0, "nothing was cut");
}

#[tokio::test]
async fn a_span_takes_its_place_between_its_parent_and_the_server() {
    let server = Recorder::start(OK).await;
    let sampler = Sampler::parse(None, None).expect("the default");
    let mut world = World::sampled(&shop(), server.at, sampler).await;
    let mut client: Client = world.connect().await;
    let ask = |parent: &str| {
        format!("GET /api HTTP/1.1\r\nHost: c\r\nTraceParent: {parent}\r\ntracestate: a=b\r\n\r\n")
    };
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    client.ask(ask(parent)).await;
    let record = world.record().await;
    let span = sluice_proxy::record::hex(&record.span_id);
    assert_eq!(sluice_proxy::record::hex(&record.parent_span_id), "00f067aa0ba902b7");
    let forwarded = ask(&format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01"));
    assert_eq!(server.seen(), forwarded, "nothing else is touched");
    let unsampled = ask("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    client.ask(&unsampled).await;
    assert!(world.record().await.span_id.is_empty(), "an unsampled parent has no span");
    client.ask(ask("nonsense")).await;
    client.ask(get("/api")).await;
    assert_eq!(server.seen(), forwarded + &unsampled + &ask("nonsense") + &get("/api"), "none is invented");
    assert!(world.record().await.parent_span_id.is_empty());
}

#[tokio::test(start_paused = true)]
async fn slow_heads_are_answered_and_silence_is_not_for_ever() {
    let server = Recorder::start(OK).await;
    let mut world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    client.send("GET /api HTTP/1.1\r\nHo").await;
    let mut answer = String::new();
    client.stream.read_to_string(&mut answer).await.expect("an answer, then the end");
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    let record = world.records.recv().await.expect("a record");
    assert_eq!((record.reason.as_str(), record.error.as_str()), ("limit", "head_timeout"));
    // Not even a request line: there is nobody to answer.
    let mut client = world.connect().await;
    assert_eq!(client.stream.read(&mut [0]).await.expect("closed in order"), 0);
    let mut client = world.connect().await;
    client.send("GE").await;
    client.stream.read(&mut [0]).await.expect_err("a reset");
    assert_eq!(world.records.recv().await.expect("a record").reason, "parse_error");
    assert!(server.peers().is_empty());
}

#[tokio::test]
async fn heads_without_end_are_cut_off() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let mut client = world.connect().await;
    client.send("GET /api HTTP/1.1\r\nHost: c\r\nX: ").await;
    client.send(vec![b'a'; sluice_proxy::limits::HEAD_BYTES]).await;
    assert!(client.answer().await.starts_with("HTTP/1.1 431 "), "too large");
    let mut client = world.connect().await;
    let target = "a".repeat(sluice_proxy::limits::TARGET_BYTES);
    assert!(client.ask(get(&format!("/api/{target}"))).await.starts_with("HTTP/1.1 414 "), "too long");
    assert_eq!(server.seen(), "");
}

/// Requests that are sent after a swap has returned are judged by it, whatever is in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_swap_nothing_passes_by_the_snapshot_before() {
    let server = Recorder::start(OK).await;
    let world = World::start(&shop(), server.at).await;
    let swapped = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..16 {
        let mut client = world.connect().await;
        let swapped = swapped.clone();
        clients.push(tokio::spawn(async move {
            let mut refused = 0;
            while refused < 5 {
                let late = swapped.load(std::sync::atomic::Ordering::SeqCst);
                client
                    .send(format!(
                        "GET /api/{} HTTP/1.1\r\nHost: c\r\n\r\n",
                        if late { "late" } else { "early" }
                    ))
                    .await;
                // A request in flight at the swap may be cut; its connection is gone then.
                let Ok(answer) = client.try_answer().await else { return late };
                refused += i32::from(answer.starts_with("HTTP/1.1 403 "));
            }
            true
        }));
    }
    soon("traffic", async {
        while server.seen().len() < 20_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let nothing = common::Rules { http: Vec::new(), ..shop() };
    world.proxy.state.swap(snapshot(2, &nothing));
    swapped.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut late = 0;
    for client in clients {
        late += usize::from(soon("a client", client).await.expect("no panic"));
    }
    assert!(late > 0, "nobody was there after the swap");
    assert!(!server.seen().contains("late"));
}
