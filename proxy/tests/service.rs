//! HTTP/1.1 and bytes through a Service's address: who is chosen, who is not, and what is written down.

mod common;

use common::service::{Counter, ONE, OTHER, Shop, TWO, address, below, echo, everything, http1, requests};
use common::{CLIENT, World, http, soon};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use sluice_policy::{Conditions, NameMatch};
use sluice_proxy::record::Record;
use sluice_proxy::service::balance::{Allowed, Balance};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")
}

fn number(answer: &str) -> u8 {
    let last = answer.bytes().last().filter(u8::is_ascii_digit);
    last.unwrap_or_else(|| panic!("no number: {answer}")) - b'0'
}

async fn three() -> [Counter; 3] {
    [http1(1).await, http1(2).await, http1(3).await]
}

fn backends(servers: &[Counter], class: sluice_policy::ClassId) -> Vec<(SocketAddr, sluice_policy::ClassId)> {
    servers.iter().map(|server| (server.at, class)).collect()
}

#[tokio::test]
async fn connections_are_spread_and_each_keeps_its_backend() {
    let servers = three().await;
    let mut shop = Shop::new(backends(&servers, ONE), vec![below(&[ONE], "/api")]);
    let mut world = shop.start().await;
    let mut by_backend = BTreeMap::new();
    for _ in 0..60 {
        let mut client = world.connect().await;
        let first = number(&client.ask(get("/api")).await);
        for _ in 0..3 {
            assert_eq!(number(&client.ask(get("/api")).await), first, "kept with its connection");
        }
        assert!(client.ask(get("/admin")).await.starts_with("HTTP/1.1 403"), "judged by the backends");
        *by_backend.entry(first).or_insert(0) += 1;
    }
    assert_eq!(by_backend.len(), 3, "{by_backend:?}");
    assert_eq!(servers.iter().map(Counter::accepted).sum::<usize>(), 60, "one each: {by_backend:?}");
    let record = world.record().await;
    let service = record.service.clone().expect("the Service is named");
    assert_eq!((service.namespace.as_str(), service.name.as_str()), ("shop", "cart"));
    assert_eq!((service.ip, service.port), (shop.vip.ip().to_string(), u32::from(shop.vip.port())));
    assert!(record.destination.pod.starts_with("cart-"), "the backend is named: {record:?}");
    assert_eq!(record.rule, "rule-0");
    assert_eq!(record.to_json()["service"]["name"], "cart");
    spans_name_both(record);
}

/// The Service that was asked for and the backend that it came to, in the span of the client's side.
fn spans_name_both(mut record: Record) {
    (record.trace_id, record.span_id) = (vec![1; 16], vec![1; 8]);
    let (backend, port) = (record.destination.ip.clone(), record.destination.port);
    let service = record.service.clone().expect("named");
    let spans = sluice_proxy::telemetry::span::resource_spans(&[record], &[]);
    let said = format!("{:?}", spans[0].scope_spans[0].spans[0].attributes);
    let text = |key: &str, value: &str| {
        let attribute = KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
            ..KeyValue::default()
        };
        assert!(spans[0].scope_spans[0].spans[0].attributes.contains(&attribute), "{key}={value}: {said}");
    };
    text("sluice.service.name", "cart");
    text("sluice.service.namespace", "shop");
    text("sluice.service.address", &service.ip);
    text("sluice.backend.namespace", "shop");
    text("network.peer.address", &backend);
    for (key, value) in [("network.peer.port", port), ("server.port", service.port)] {
        let number = AnyValue { value: Some(Value::IntValue(i64::from(value))) };
        let attribute = KeyValue { key: key.to_owned(), value: Some(number), ..KeyValue::default() };
        assert!(spans[0].scope_spans[0].spans[0].attributes.contains(&attribute), "{key}={value}: {said}");
    }
}

#[tokio::test]
async fn the_denial_is_of_the_first_backend_and_nobody_is_dialled() {
    let servers = three().await;
    let mut shop = Shop::new(backends(&servers, ONE), vec![below(&[ONE], "/api")]);
    let mut world = shop.start().await;
    for _ in 0..8 {
        let mut client = world.connect().await;
        assert!(client.ask(get("/admin")).await.starts_with("HTTP/1.1 403"));
        let record = world.record().await;
        assert_eq!((record.verdict.as_str(), record.reason.as_str()), ("deny", "no_rule_matched"));
        assert_eq!((record.destination.pod.as_str(), record.at_ingress), ("cart-0", false));
        assert_eq!(record.service.expect("named").name, "cart");
        assert_eq!(record.nearest_miss, "path /admin does not match PathPrefix /api");
    }
    // Whom no rule names is refused before a word.
    shop.egress = vec![everything(&[OTHER])];
    shop.swap(&world);
    let mut stream = world.connect_from(CLIENT).await;
    assert!(soon("a reset", stream.read(&mut [0])).await.is_err());
    let record = world.record().await;
    assert_eq!((record.reason.as_str(), record.destination.pod.as_str()), ("default_deny", "cart-0"));
    assert!(servers.iter().all(|server| server.accepted() == 0));
}

/// Each request goes where it may go, over connections of the client's own.
#[tokio::test]
async fn a_request_that_its_connections_backend_may_not_get_goes_to_one_that_may() {
    let servers = three().await;
    let classes = [ONE, TWO, OTHER];
    let all = servers.iter().zip(classes).map(|(server, class)| (server.at, class)).collect();
    let mut shop =
        Shop::new(all, vec![below(&[ONE], "/one"), below(&[TWO], "/two"), below(&[ONE, TWO], "/both")]);
    let world = shop.start().await;
    for _ in 0..4 {
        let mut client = world.connect().await;
        for _ in 0..3 {
            assert_eq!(number(&client.ask(get("/one")).await), 1);
            assert_eq!(number(&client.ask(get("/both")).await), 1);
            assert_eq!(number(&client.ask(get("/two")).await), 2);
            assert_eq!(number(&client.ask(get("/both")).await), 1, "the first is the connection's");
            assert!(client.ask(get("/three")).await.starts_with("HTTP/1.1 403"));
        }
    }
    assert_eq!(
        servers.each_ref().map(Counter::accepted),
        [4, 4, 0],
        "each client has one to each, and keeps them"
    );
}

#[tokio::test]
async fn the_ingress_of_local_backends_is_asked_too() {
    let servers = three().await;
    let mut shop = Shop::new(backends(&servers, ONE), vec![everything(&[ONE])]);
    shop.local = vec![0, 1];
    shop.ingress = vec![requests(&[sluice_policy::ClassId(1)], vec![http(&["GET"], None)])];
    let mut world = shop.start().await;
    let mut got = BTreeMap::new();
    for _ in 0..40 {
        let mut client = world.connect().await;
        let put = client.ask("PUT / HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(number(&put), 3, "the other two take no PUT");
        let mut client = world.connect().await;
        *got.entry(number(&client.ask(get("/")).await)).or_insert(0) += 1;
    }
    assert_eq!(got.len(), 3, "{got:?}");
    shop.serving = vec![0, 1];
    shop.swap(&world);
    while world.records.try_recv().is_ok() {}
    let mut client = world.connect().await;
    assert!(client.ask("PUT / HTTP/1.1\r\nHost: cart\r\n\r\n").await.starts_with("HTTP/1.1 403"));
    let record = world.record().await;
    assert_eq!((record.policy.as_str(), record.at_ingress), ("L7NetworkPolicy/shop/cart", true));
    assert_eq!(record.nearest_miss, "method PUT not in [GET]");
}

#[tokio::test]
async fn session_affinity_holds_while_backends_come_and_go() {
    let mut servers = Vec::from(three().await);
    let mut shop = Shop::new(backends(&servers, ONE), vec![below(&[ONE], "/")]);
    shop.affinity = Some(3600);
    let world = shop.start().await;
    let ask = async |world: &World| number(&world.connect().await.ask(get("/")).await);
    let first = ask(&world).await;
    for _ in 0..10 {
        assert_eq!(ask(&world).await, first);
    }
    // A proxy that remembers nothing, after a restart, gives the same.
    assert_eq!(ask(&shop.clone().start().await).await, first);
    // Whoever joins takes no client away, even where the hash would.
    let by_hash = |shop: &Shop| {
        let all: Vec<_> = shop.backends.iter().map(|(at, _)| *at).collect();
        Balance::by_hash(CLIENT, &Allowed::of(vec![&all]))
    };
    while by_hash(&shop) == Some(servers[usize::from(first) - 1].at) {
        servers.push(http1(9).await);
        shop.backends.push((servers[servers.len() - 1].at, ONE));
        shop.serving.push(servers.len() - 1);
    }
    shop.swap(&world);
    for _ in 0..10 {
        assert_eq!(ask(&world).await, first);
    }
    // Its backend leaves: it gets another, and keeps that when the first one comes back.
    let all = shop.serving.clone();
    shop.serving.retain(|place| *place + 1 != usize::from(first));
    shop.swap(&world);
    let second = ask(&world).await;
    assert_ne!(second, first);
    shop.serving = all;
    shop.swap(&world);
    for _ in 0..10 {
        assert_eq!(ask(&world).await, second);
    }
}

#[tokio::test]
async fn a_backend_that_refuses_is_said_so_and_no_other_is_tried() {
    let servers = three().await;
    let mut all = backends(&servers, ONE);
    let closed = tokio::net::TcpListener::bind(SocketAddr::new(address(7), 0)).await.expect("a port");
    all.push((closed.local_addr().expect("bound"), ONE));
    drop(closed);
    let mut shop = Shop::new(all, vec![below(&[ONE], "/")]);
    let mut world = shop.start().await;
    let mut client = world.connect().await;
    for asked in 0.. {
        assert!(asked < 1000, "it was never chosen");
        client = world.connect().await;
        let answer = client.ask(get("/")).await;
        let record = world.record().await;
        if answer.starts_with("HTTP/1.1 503") {
            assert_eq!((record.error.as_str(), record.destination.pod.as_str()), ("unreachable", "cart-3"));
            assert_eq!(servers.iter().map(Counter::asked).sum::<usize>(), asked, "no retry");
            break;
        }
    }
    while !client.ask(get("/")).await.contains("200 OK") {}
}

#[tokio::test]
async fn a_backend_that_left_keeps_what_is_open_and_gets_nothing_new() {
    let servers = [echo(1).await, echo(2).await];
    let mut shop = Shop::new(backends(&servers, ONE), vec![everything(&[ONE, TWO])]);
    let mut world = shop.start().await;
    let mut open = world.connect_from(CLIENT).await;
    let mut byte = [0];
    soon("a number", open.read_exact(&mut byte)).await.expect("a number");
    let first = usize::from(byte[0] - b'1');
    shop.serving = vec![1 - first];
    assert_eq!(shop.swap(&world), 0, "policy still allows it");
    for _ in 0..20 {
        let mut next = world.connect_from(CLIENT).await;
        soon("a number", next.read_exact(&mut byte)).await.expect("a number");
        assert_eq!(usize::from(byte[0] - b'1'), 1 - first);
    }
    open.write_all(b"x").await.expect("it goes on");
    soon("an echo", open.read_exact(&mut byte)).await.expect("an echo");
    assert_eq!(byte, *b"x");
    // It is judged by its backend all the same, in the Service or not.
    shop.backends[first].1 = OTHER;
    shop.swap(&world);
    assert!(soon("a reset", open.read(&mut byte)).await.is_err());
    let revoked = soon("a record", async {
        loop {
            let record = world.record().await;
            if !record.error.is_empty() {
                break record;
            }
        }
    });
    let record = revoked.await;
    assert_eq!((record.error.as_str(), record.verdict.as_str()), ("revoked", "deny"));
    assert_eq!(record.destination.port, u32::from(servers[first].at.port()));
    assert_eq!(record.service.expect("named").name, "cart");
}

/// HTTP/1.1 on a connection that stays: the next request is new.
#[tokio::test]
async fn a_kept_connection_follows_its_service() {
    let servers = three().await;
    let mut shop = Shop::new(backends(&servers, ONE), vec![below(&[ONE], "/")]);
    let world = shop.start().await;
    let mut client = world.connect().await;
    let first = usize::from(number(&client.ask(get("/")).await)) - 1;
    shop.serving.retain(|place| *place != first);
    shop.swap(&world);
    let second = usize::from(number(&client.ask(get("/")).await)) - 1;
    assert_ne!(second, first);
    // One whose class changes to one that is not allowed gets nothing more either.
    shop.backends[second].1 = OTHER;
    shop.swap(&world);
    let third = usize::from(number(&client.ask(get("/")).await)) - 1;
    assert!(third != second && third != first, "{first} {second} {third}");
    shop.serving.clear();
    shop.swap(&world);
    assert!(client.ask(get("/")).await.starts_with("HTTP/1.1 403"), "nobody stands there");
    // A Service that has gone is an address that nobody knows.
    shop.exists = false;
    shop.swap(&world);
    let mut world = world;
    while world.records.try_recv().is_ok() {}
    assert!(client.ask(get("/")).await.starts_with("HTTP/1.1 403"));
    let record = world.record().await;
    assert_eq!((record.destination.ip, record.service), (shop.vip.ip().to_string(), None));
}

#[tokio::test]
async fn a_service_without_backends_is_said_so() {
    let servers = three().await;
    let mut shop = Shop::new(backends(&servers, ONE), vec![below(&[ONE, sluice_policy::ClassId(2)], "/")]);
    shop.serving.clear();
    let mut world = shop.start().await;
    let mut client = world.connect().await;
    assert!(client.ask(get("/")).await.starts_with("HTTP/1.1 503"));
    let record = world.record().await;
    assert_eq!((record.error.as_str(), record.destination.ip), ("unreachable", shop.vip.ip().to_string()));
    assert_eq!(record.service.expect("named").name, "cart");
    // The same connection, once somebody stands there.
    shop.serving = vec![2];
    shop.swap(&world);
    assert_eq!(number(&client.ask(get("/")).await), 3);
}

#[tokio::test]
async fn a_websocket_goes_to_one_backend_that_may_have_it() {
    let servers = three().await;
    let classes = [ONE, TWO, ONE];
    let all = servers.iter().zip(classes).map(|(server, class)| (server.at, class)).collect();
    let mut item = http(&["GET"], None);
    item.upgrades = vec!["websocket".into()];
    let mut shop = Shop::new(all, vec![below(&[ONE, TWO], "/plain"), requests(&[TWO], vec![item])]);
    let world = shop.start().await;
    for _ in 0..6 {
        let mut client = world.connect().await;
        client.ask(get("/plain")).await;
        let ask = "GET /ws HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert!(client.ask(ask).await.starts_with("HTTP/1.1 101"));
    }
    let plain: usize = servers.iter().map(Counter::asked).sum::<usize>() - 6;
    assert_eq!(plain, 6);
    assert!(servers[1].asked() >= 6, "every WebSocket");
    let mut client = world.connect().await;
    let ask = "GET /ws HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(client.ask(ask).await.starts_with("HTTP/1.1 101"));
    // And goes when its backend's permission does.
    shop.backends[1].1 = OTHER;
    soon("the others' end", async {
        while world.proxy.state.open_flows() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(shop.swap(&world), 1);
    assert!(client.rest().await.is_err());
}

#[tokio::test]
async fn an_address_that_is_no_services_is_a_destination_as_before() {
    let servers = three().await;
    let mut shop = Shop::new(backends(&servers, ONE), vec![below(&[ONE], "/")]);
    let world = shop.start().await;
    // The Service's address at a port that is not the Service's.
    shop.vip.set_port(1);
    shop.swap(&world);
    let mut stream = world.connect_from(CLIENT).await;
    assert!(soon("a reset", stream.read(&mut [0])).await.is_err(), "the address's own class is the world");
    assert!(servers.iter().all(|server| server.accepted() == 0));
}

/// The first bytes of a TLS client that asks for this name.
fn client_hello(name: &'static str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a hello");
    bytes
}

#[tokio::test]
async fn tls_goes_to_a_backend_that_may_be_asked_for_its_name() {
    let servers = [echo(1).await, echo(2).await, echo(3).await];
    let classes = [ONE, TWO, OTHER];
    let all = servers.iter().zip(classes).map(|(server, class)| (server.at, class)).collect();
    let named = |class, name: &str| {
        let tls = vec![NameMatch::Exact(name.into())];
        (vec![class], Some(Conditions { tls, ..Conditions::default() }))
    };
    let mut shop = Shop::new(all, vec![named(ONE, "one.example"), named(TWO, "two.example")]);
    let mut world = shop.start().await;
    for (name, expected) in [("one.example", b"1"), ("two.example", b"2")] {
        for _ in 0..5 {
            let mut client = world.connect_from(CLIENT).await;
            client.write_all(&client_hello(name)).await.expect("sent");
            let mut number = [0];
            soon("a number", client.read_exact(&mut number)).await.expect("a number");
            assert_eq!(&number, expected, "{name}");
        }
    }
    while world.proxy.state.open_flows() > 0 {
        world.record().await;
    }
    let mut client = world.connect_from(CLIENT).await;
    client.write_all(&client_hello("three.example")).await.expect("sent");
    assert!(soon("a reset", client.read(&mut [0])).await.is_err());
    let denied = soon("a denial", async {
        loop {
            let record = world.record().await;
            if record.host == "three.example" {
                break record;
            }
        }
    });
    let record = denied.await;
    assert_eq!((record.reason.as_str(), record.destination.pod.as_str()), ("no_rule_matched", "cart-0"));
    assert_eq!(servers.each_ref().map(Counter::accepted), [5, 5, 0]);
}
