//! TLS passes by the name that its client asks for, and untouched: real handshakes through the proxy.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test says what is wrong by failing")]

mod common;

use common::{CLIENT, Rules, World, shop, snapshot, soon};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sluice_policy::{Conditions, Mode, NameMatch, Snapshot};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A server that says `hello` over TLS, and what it takes to trust it under these names.
async fn server(names: &[&str]) -> (SocketAddr, Arc<ClientConfig>) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                stream.write_all(b"hello").await?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await
            });
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    (at, Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// The frontend may speak TLS to these names, and nothing else.
fn naming(generation: u64, names: &[NameMatch]) -> Arc<Snapshot> {
    named(&snapshot(generation, &shop()), names)
}

/// The same, but that its one rule asks for these names.
fn named(snapshot: &Snapshot, names: &[NameMatch]) -> Arc<Snapshot> {
    let mut profiles = snapshot.profiles.to_vec();
    let rule = &mut profiles[0].ingress.layers[1].allow[0];
    rule.conditions = Some(Arc::new(Conditions { tls: names.to_vec(), ..Conditions::default() }));
    Arc::new(Snapshot { profiles: profiles.into(), ..snapshot.clone() })
}

fn api() -> [NameMatch; 2] {
    [NameMatch::Exact("api.example.com".into()), NameMatch::Under("apps.example.com".into())]
}

async fn hello(stream: TcpStream, config: Arc<ClientConfig>, name: &str) -> std::io::Result<String> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await?;
    let mut said = [0; 5];
    stream.read_exact(&mut said).await?;
    stream.shutdown().await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn tls_passes_to_the_names_that_a_rule_gives_and_to_no_other() {
    let names = ["api.example.com", "a.b.apps.example.com", "apps.example.com", "api.example.org"];
    let (at, config) = server(&names).await;
    let mut world = World::start(&shop(), at).await;
    world.proxy.state.swap(naming(2, &api()));
    for (name, passes) in names.into_iter().zip([true, true, false, false]) {
        let stream = world.connect_from(CLIENT).await;
        let said = soon(name, hello(stream, config.clone(), name)).await;
        assert_eq!(said.is_ok(), passes, "{name}: {said:?}");
        let record = world.record().await;
        let verdict = if passes { ("allow", "rule_matched") } else { ("deny", "no_rule_matched") };
        assert_eq!((record.verdict.as_str(), record.reason.as_str()), verdict, "{name}");
        assert_eq!((record.protocol.as_str(), record.host.as_str()), ("tls", name));
        if !passes {
            assert!(record.nearest_miss.contains(name), "{}", record.nearest_miss);
        }
    }
}

#[tokio::test]
async fn no_name_and_no_tls_are_no_match() {
    let (at, config) = server(&["api.example.com"]).await;
    let mut world = World::start(&shop(), at).await;
    world.proxy.state.swap(naming(2, &api()));
    // An address is no server name (RFC 6066 §3): the client sends none.
    let stream = world.connect_from(CLIENT).await;
    soon("no name", hello(stream, config, "127.0.0.2")).await.unwrap_err();
    let record = world.record().await;
    assert_eq!(
        (record.verdict.as_str(), record.protocol.as_str(), record.host.as_str()),
        ("deny", "tls", "")
    );
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n"[..],
        b"\x16\x03\x01\x00\x05\x02aaaa",
        b"EHLO a\r\n",
    ] {
        let mut client = world.connect().await;
        client.send(bytes).await;
        let _ = client.rest().await;
        assert_eq!(world.record().await.verdict, "deny", "{bytes:?}");
    }
    // A hello that breaks off is one that cannot be read.
    let mut client = world.connect().await;
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    client.stream.shutdown().await.unwrap();
    let _ = client.rest().await;
    assert_eq!(world.record().await.reason, "parse_error");
}

/// Sends what the client says in pieces, each in a segment of its own.
async fn in_pieces(mut from: TcpStream, to: TcpStream, size: usize) {
    to.set_nodelay(true).unwrap();
    let (mut read, mut write) = to.into_split();
    let (mut from_read, mut from_write) = from.split();
    let up = async {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from_read.read(&mut buffer).await {
            for piece in buffer[..length].chunks(size) {
                if write.write_all(piece).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let _ = write.shutdown().await;
    };
    tokio::join!(up, async {
        let _ = tokio::io::copy(&mut read, &mut from_write).await;
        let _ = from_write.shutdown().await;
    });
}

#[tokio::test]
async fn a_hello_in_pieces_and_one_longer_than_a_segment_are_read() {
    let (at, config) = server(&["api.example.com"]).await;
    let mut longer = (*config).clone();
    // Many protocols to choose from make a hello of several kilobytes.
    longer.alpn_protocols = (0..400).map(|number| format!("protocol-{number}").into_bytes()).collect();
    let mut world = World::start(&shop(), at).await;
    world.proxy.state.swap(naming(2, &api()));
    for (config, size) in [(config, 40), (Arc::new(longer), 1000)] {
        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(between.local_addr().unwrap()).await.unwrap();
        let (server_end, _) = between.accept().await.unwrap();
        let slow = tokio::spawn(in_pieces(server_end, world.connect_from(CLIENT).await, size));
        assert_eq!(soon("a slow hello", hello(client, config, "api.example.com")).await.unwrap(), "hello");
        assert_eq!(world.record().await.verdict, "allow");
        slow.abort();
    }
}

#[tokio::test]
async fn a_name_that_loses_its_rule_loses_its_connection() {
    let (at, config) = server(&["api.example.com"]).await;
    let mut world = World::start(&shop(), at).await;
    world.proxy.state.swap(naming(2, &api()));
    let stream = world.connect_from(CLIENT).await;
    let name = ServerName::try_from("api.example.com").unwrap();
    let mut open = soon("a handshake", TlsConnector::from(config).connect(name, stream)).await.unwrap();
    let mut said = [0; 5];
    soon("a hello", open.read_exact(&mut said)).await.unwrap();
    assert_eq!(world.proxy.state.swap(naming(3, &api())), 0);
    assert_eq!(world.proxy.state.swap(naming(4, &[NameMatch::Exact("other.example.com".into())])), 1);
    soon("the end", open.read_exact(&mut said)).await.unwrap_err();
    let record = world.record().await;
    assert_eq!((record.verdict.as_str(), record.error.as_str()), ("deny", "revoked"));
}

/// Where only an audited policy asks, nothing is stopped, and what would have been is told by name.
#[tokio::test]
async fn under_audit_every_name_passes_and_the_wrong_one_is_told() {
    let (at, config) = server(&["api.example.com", "api.example.org"]).await;
    let audited = Rules { mode: Mode::Audit, ..shop() };
    let mut world = World::start(&audited, at).await;
    world.proxy.state.swap(named(&snapshot(2, &audited), &api()));
    for (name, verdict) in [("api.example.com", "allow"), ("api.example.org", "audit")] {
        let stream = world.connect_from(CLIENT).await;
        assert_eq!(soon(name, hello(stream, config.clone(), name)).await.unwrap(), "hello");
        assert_eq!(world.record().await.verdict, verdict, "{name}");
    }
}
