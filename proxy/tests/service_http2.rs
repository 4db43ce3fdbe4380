//! HTTP/2 and gRPC through a Service's address: the backend is chosen for each stream.

mod common;

use bytes::Bytes;
use common::http2::{Served, server_at};
use common::service::{ONE, OTHER, Shop, TWO, address, calls, connect};
use common::soon;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::{HeaderValue, Request, Response, StatusCode};
use sluice_policy::ClassId;
use sluice_proxy::limits::UPSTREAMS;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use tokio::sync::mpsc;

struct Backend {
    at: SocketAddr,
    streams: mpsc::Receiver<Served>,
}

async fn backends(count: u8) -> Vec<Backend> {
    let mut all = Vec::new();
    for number in 1..=count {
        let (at, streams) = server_at(address(number)).await;
        all.push(Backend { at, streams });
    }
    all
}

fn of(servers: &[Backend], class: ClassId) -> Vec<(SocketAddr, ClassId)> {
    servers.iter().map(|server| (server.at, class)).collect()
}

fn grpc(method: &str) -> Request<()> {
    let mut request = Request::builder()
        .method("POST")
        .uri(format!("http://cart/shop.v1.Cart/{method}"))
        .body(())
        .expect("a request");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request
}

type Answering = (h2::client::ResponseFuture, SendStream<Bytes>);

async fn send(client: &SendRequest<Bytes>, request: Request<()>, whole: bool) -> Answering {
    let mut ready = soon("a free stream", client.clone().ready()).await.expect("the connection lives");
    ready.send_request(request, whole).expect("sent")
}

/// The next stream at any of the servers, with the server's place.
async fn served(servers: &mut [Backend]) -> (usize, Served) {
    soon("a stream", async {
        loop {
            for (place, server) in servers.iter_mut().enumerate() {
                if let Ok(stream) = server.streams.try_recv() {
                    return (place, stream);
                }
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

fn end(mut stream: Served) {
    stream.respond.send_response(Response::new(()), true).expect("sent");
}

async fn status(answer: h2::client::ResponseFuture) -> StatusCode {
    soon("an answer", answer).await.expect("an answer").status()
}

#[tokio::test]
async fn the_streams_of_one_connection_are_spread_over_three_backends() {
    let mut servers = backends(3).await;
    let mut shop = Shop::new(of(&servers, ONE), vec![calls(&[ONE], &["GetCart"])]);
    let mut world = shop.start().await;
    let client = connect(&world).await;
    let mut got = BTreeMap::new();
    for _ in 0..90 {
        let (answer, _) = send(&client, grpc("GetCart"), true).await;
        let (place, stream) = served(&mut servers).await;
        assert_eq!(stream.request.uri().path(), "/shop.v1.Cart/GetCart");
        end(stream);
        assert_eq!(status(answer).await, StatusCode::OK);
        *got.entry(place).or_insert(0) += 1;
        let record = world.record().await;
        assert_eq!(record.destination.pod, format!("cart-{place}"), "the record names who served");
        assert_eq!(record.service.expect("named").name, "cart");
    }
    // At random, each has 30 of 90; fewer than 10 has odds of one in a million.
    assert!(got.len() == 3 && got.values().all(|count| *count >= 10), "{got:?}");
    let (denied, _) = send(&client, grpc("Empty"), true).await;
    assert_eq!(soon("a denial", denied).await.expect("an answer").headers()["grpc-status"], "7");
    assert_eq!(world.record().await.destination.pod, "cart-0");
}

/// Streams that stay open weigh: the next goes to whoever has fewer.
#[tokio::test]
async fn open_streams_are_level() {
    let mut servers = backends(3).await;
    let mut shop = Shop::new(of(&servers, ONE), vec![calls(&[ONE], &[])]);
    let world = shop.start().await;
    let client = connect(&world).await;
    let (mut open, mut got) = (Vec::new(), [0_i32; 3]);
    for _ in 0..60 {
        let answer = send(&client, grpc("WatchCart"), false).await;
        let (place, stream) = served(&mut servers).await;
        got[place] += 1;
        open.push((answer, stream));
    }
    // Two choices keep the lead of the busiest within a few; at random it would be about eight.
    let (most, least) = (got.iter().max().expect("three"), got.iter().min().expect("three"));
    assert!(most - least <= 6, "{got:?}");
    for (place, server) in servers.iter().enumerate() {
        assert_eq!(i64::from(world.proxy.balance.load(server.at)), i64::from(got[place]));
    }
    drop((open, client));
    soon("nothing open", async {
        while servers.iter().any(|server| world.proxy.balance.load(server.at) > 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn each_stream_goes_only_where_it_may() {
    let mut servers = backends(3).await;
    let classes = [ONE, TWO, OTHER];
    let all = servers.iter().zip(classes).map(|(server, class)| (server.at, class)).collect();
    let mut shop = Shop::new(all, vec![calls(&[ONE], &["GetCart"]), calls(&[TWO], &["WatchCart"])]);
    let world = shop.start().await;
    let client = connect(&world).await;
    for round in 0..20 {
        let (method, expected) = if round % 2 == 0 { ("GetCart", 0) } else { ("WatchCart", 1) };
        let (answer, _) = send(&client, grpc(method), true).await;
        let (place, stream) = served(&mut servers).await;
        assert_eq!(place, expected, "{method}");
        end(stream);
        assert_eq!(status(answer).await, StatusCode::OK);
    }
}

/// A server that ends leaves the others' streams, and the client's connection, alone.
#[tokio::test]
async fn a_goaway_of_one_backend_harms_no_stream_at_another() {
    let mut servers = backends(2).await;
    let (leaving, mut held) = leaving().await;
    let mut all = of(&servers, ONE);
    all.push((leaving, ONE));
    let mut shop = Shop::new(all, vec![calls(&[ONE], &[])]);
    let world = shop.start().await;
    let client = connect(&world).await;
    // Until each of the three holds an open stream; the third says that it takes no more.
    let mut open: Vec<(usize, Answering, Option<Served>)> = Vec::new();
    let mut last = None;
    soon("streams everywhere", async {
        while last.is_none() || (0..2).any(|place| open.iter().all(|(at, ..)| *at != place)) {
            let answer = send(&client, grpc("WatchCart"), false).await;
            loop {
                if let Ok(body) = held.try_recv() {
                    last = Some((answer, body));
                    break;
                }
                let got =
                    servers.iter_mut().enumerate().find_map(|(at, s)| Some((at, s.streams.try_recv().ok()?)));
                if let Some((at, stream)) = got {
                    open.push((at, answer, Some(stream)));
                    break;
                }
                tokio::task::yield_now().await;
            }
            if last.is_some() {
                // It took one: what comes next goes to the others, or to a new connection of it.
                shop.serving = vec![0, 1];
                shop.swap(&world);
            }
        }
    })
    .await;
    let ((answer, _up), mut body) = last.expect("held");
    let mut body_down = soon("the head", answer).await.expect("a head").into_body();
    for _ in 0..20 {
        let (answer, _) = send(&client, grpc("GetCart"), true).await;
        let (_, stream) = served(&mut servers).await;
        end(stream);
        assert_eq!(status(answer).await, StatusCode::OK);
    }
    for (_, (answer, _up), stream) in open {
        end(stream.expect("open"));
        assert_eq!(status(answer).await, StatusCode::OK, "streams at the others go on");
    }
    body.send_data(Bytes::from_static(b"last words"), true).expect("its open stream ends in peace");
    assert_eq!(soon("data", body_down.data()).await.expect("data").expect("data"), "last words");
}

/// A server that holds its first stream open, and has said at it that it wants to end.
async fn leaving() -> (SocketAddr, mpsc::Receiver<SendStream<Bytes>>) {
    let listener = tokio::net::TcpListener::bind(SocketAddr::new(address(9), 0)).await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let (bodies, held) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let bodies = bodies.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let body = respond.send_response(Response::new(()), false).expect("sent");
                    bodies.send(body).await.expect("the test listens");
                    connection.graceful_shutdown();
                }
            });
        }
    });
    (at, held)
}

/// One backend alone, which ends its connection after each stream: the next is on a new one, and the client notices
/// nothing.
#[tokio::test]
async fn a_backend_that_goes_away_is_dialled_anew() {
    let (leaving, mut held) = leaving().await;
    let mut shop = Shop::new(vec![(leaving, ONE)], vec![calls(&[ONE], &[])]);
    let world = shop.start().await;
    let client = connect(&world).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let (answer, up) = send(&client, grpc("WatchCart"), false).await;
        let body = soon("a stream", held.recv()).await.expect("a stream");
        let down = soon("the head", answer).await.expect("a head").into_body();
        open.push((up, body, down));
    }
    for (_up, mut body, mut down) in open {
        body.send_data(Bytes::from_static(b"x"), true).expect("sent");
        assert_eq!(soon("data", down.data()).await.expect("data").expect("data"), "x");
    }
}

#[tokio::test]
async fn a_swap_closes_the_streams_of_one_backend_alone() {
    let mut servers = backends(2).await;
    let all = vec![(servers[0].at, ONE), (servers[1].at, TWO)];
    let mut shop = Shop::new(all, vec![calls(&[ONE], &["GetCart"]), calls(&[TWO], &["WatchCart"])]);
    let mut world = shop.start().await;
    let client = connect(&world).await;
    let (one, _up_one) = send(&client, grpc("GetCart"), false).await;
    let (_, at_one) = served(&mut servers).await;
    let (two, _up_two) = send(&client, grpc("WatchCart"), false).await;
    let (_, mut at_two) = served(&mut servers).await;
    shop.backends[1].1 = OTHER;
    assert_eq!(shop.swap(&world), 1);
    let cut = soon("a denial", two).await.expect("an answer");
    assert_eq!(cut.headers()["grpc-status"], "7");
    let reason = soon("the reset", poll_fn(|cx| at_two.respond.poll_reset(cx))).await.expect("a reset");
    assert_eq!(reason, Reason::CANCEL);
    end(at_one);
    assert_eq!(status(one).await, StatusCode::OK);
    let record = world.record().await;
    assert_eq!((record.error.as_str(), record.destination.pod.as_str()), ("revoked", "cart-1"));
}

/// More backends than connections that one client may have: the client's streams go to some of them, all the time.
#[tokio::test]
async fn the_connections_of_one_client_are_bounded() {
    let count = UPSTREAMS + 8;
    let mut servers = backends(u8::try_from(count).expect("few")).await;
    let mut shop = Shop::new(of(&servers, ONE), vec![calls(&[ONE], &[])]);
    let world = shop.start().await;
    let client = connect(&world).await;
    let mut got = BTreeMap::new();
    for _ in 0..count * 10 {
        let (answer, _) = send(&client, grpc("GetCart"), true).await;
        let (place, stream) = served(&mut servers).await;
        end(stream);
        assert_eq!(status(answer).await, StatusCode::OK);
        *got.entry(place).or_insert(0) += 1;
    }
    assert_eq!(got.len(), UPSTREAMS, "{got:?}");
    // The ones it has may not have what another may: one that is idle makes way.
    let other = (0..count).find(|place| !got.contains_key(place)).expect("more than the bound");
    shop.backends[other].1 = TWO;
    shop.egress = vec![calls(&[ONE, TWO], &["GetCart"]), calls(&[TWO], &["WatchCart"])];
    shop.swap(&world);
    let (answer, _) = send(&client, grpc("WatchCart"), true).await;
    let (place, stream) = served(&mut servers).await;
    assert_eq!(place, other);
    end(stream);
    assert_eq!(status(answer).await, StatusCode::OK);
}
