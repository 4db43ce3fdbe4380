//! What fuzzers call: bytes of a stranger in, and a panic if something is not as it must be.
//!
//! Compiled for fuzzers (`cargo xtask fuzz`, `proxy/fuzz`) and for the tests, which run every seed and every crash that
//! was ever found. Sans I/O: no socket, no runtime.

use crate::dial::Dialer;
use crate::draft::{Reader, Sink};
use crate::http1::body::Pump;
use crate::http1::head::{Bad, Changes, Framing, RequestHead, ResponseHead, find_end};
use crate::proxy::Proxy;
use crate::telemetry::sampler::Sampler;
use crate::tls::{Hello, client_hello};
use crate::{detect, limits};
use bytes::{Bytes, BytesMut};
use sluice_policy::{
    Class, ClassId, ClassSet, Conditions, Endpoint, HttpMatch, Identity, IsolatedPorts, Isolation, Kind,
    Layer, Mode, OnDeny, Origin, PathMatch, Policy, PolicyId, PortSet, Prefix, PrefixTable, Profile,
    ProfileId, Rule, Scope, Services, Side, Snapshot, Workload,
};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, Waker};

pub use crate::http2::fuzzing::block;
pub use crate::http2::relay::fuzzing::relay;

/// The client of the fuzzers' proxy.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
/// Its server, an endpoint that takes GET and POST below this path.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// See [`SERVER`].
pub(crate) const PREFIX: &str = "/api";

/// One target by the name of its seeds' folder.
///
/// # Panics
/// If something is not as it must be, or there is no such target.
pub fn run(target: &str, bytes: &[u8]) {
    match target {
        "head" => head(bytes),
        "chunks" => chunks(bytes),
        "hello" => hello(bytes),
        "relay" => relay(bytes),
        "block" => block(bytes),
        other => panic!("no target is named {other}"),
    }
}

/// The targets.
pub const TARGETS: [&str; 5] = ["head", "chunks", "hello", "relay", "block"];

/// HTTP/1 heads: what goes on has one reading, by the plainest reader there is.
///
/// # Panics
/// If it has two.
pub fn head(bytes: &[u8]) {
    let _ = detect::detect(bytes);
    let Ok(Some(end)) = find_end(bytes, 0) else { return };
    if let Ok(head) = RequestHead::parse(&bytes[..end]) {
        // CONNECT has no path that could be another.
        let path = (head.method() != "CONNECT").then(|| "/new".to_owned());
        let changed = Changes { path, traceparent: Some("t".to_owned()) };
        for changes in [Changes::default(), changed] {
            let on = head.forward(&changes);
            assert_eq!(plain_framing(&on), Some(head.framing), "{on:?}");
            let again = RequestHead::parse(&on).unwrap_or_else(|bad| panic!("{bad:?}: {on:?}"));
            assert_eq!(
                (&again.said.method, &again.said.host),
                (&head.said.method, &head.said.host),
                "{on:?}"
            );
            assert_eq!(again.said.path, if changes.path.is_some() { "/new" } else { &head.said.path });
        }
    }
    for to_head in [false, true] {
        if let Ok(head) = ResponseHead::parse(&bytes[..end], to_head) {
            match ResponseHead::parse(&head.forward(true), to_head) {
                Ok(again) => assert!(again.close && again.status == head.status),
                // With a field of ours there may be one more than is taken.
                Err(bad) => assert_eq!(bad, Bad::TooLarge),
            }
        }
    }
}

/// The framing as somebody reads it who knows lines and colons.
fn plain_framing(head: &[u8]) -> Option<Framing> {
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut framing = Framing::Empty;
    for line in text.split("\r\n").skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let (name, value) = (name.to_ascii_lowercase().replace('_', "-"), value.trim_matches([' ', '\t']));
        let said = match name.as_str() {
            "content-length" => Framing::Length(value.parse().ok()?),
            "transfer-encoding" if value == "chunked" => Framing::Chunked,
            "transfer-encoding" => return None,
            _ => continue,
        };
        if framing != Framing::Empty {
            return None;
        }
        framing = said;
    }
    Some(if framing == Framing::Length(0) { Framing::Empty } else { framing })
}

/// Chunked bodies: what goes on is its own canonical form, and one that is broken does not look whole.
///
/// # Panics
/// If it does.
pub fn chunks(bytes: &[u8]) {
    let (whole, out) = pumped(bytes);
    let (again, twice) = pumped(&out);
    if whole {
        assert!(again, "what goes on is whole: {out:?}");
        assert_eq!(twice, out, "and stays as it is");
    } else {
        assert!(!again, "a broken body must not look whole: {bytes:?} became {out:?}");
    }
}

fn pumped(mut bytes: &[u8]) -> (bool, Vec<u8>) {
    let (mut out, mut buf, count) = (Vec::new(), BytesMut::new(), AtomicU64::new(0));
    let mut pump = Pump::new(&mut bytes, &mut buf, &mut out, &count, Bytes::new());
    // Slices and vectors are always ready.
    let whole = ready(pump.run(Framing::Chunked)).is_ok();
    (whole, out)
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing here waits"),
    }
}

/// ClientHello: a name is a name, and was said.
///
/// # Panics
/// If it is not.
pub fn hello(bytes: &[u8]) {
    let Hello::Name(Some(name)) = client_hello(bytes) else { return };
    assert!(!name.is_empty() && name.len() < limits::SERVER_NAME_BYTES && !name.ends_with('.'), "{name}");
    assert!(!name.bytes().any(|b| b.is_ascii_uppercase() || !b.is_ascii_graphic()), "{name}");
}

/// A proxy whose policy is in force, or one that denies everything; and where its records go.
pub(crate) fn proxy() -> (Arc<Proxy>, Reader) {
    let (sink, records) = Sink::new();
    let proxy = Proxy::new(Dialer::Local, sink, Sampler::OFF);
    proxy.state.swap(snapshot(true));
    (proxy, records)
}

/// See [`SERVER`]; or that nothing is let through.
pub(crate) fn snapshot(opens: bool) -> Arc<Snapshot> {
    let origin = Origin { kind: Kind::L7NetworkPolicy, namespace: "shop".into(), name: "cart".into() };
    let policy =
        Arc::new(Policy { id: PolicyId(0), origin, mode: Mode::Enforce, on_deny: OnDeny::default() });
    let item = HttpMatch {
        methods: ["GET", "POST"].map(Into::into).to_vec(),
        path: Some(PathMatch::prefix(if opens { PREFIX } else { "/nothing" })),
        upgrades: vec!["websocket".into()],
        ..HttpMatch::default()
    };
    let rule = Rule {
        policy: policy.clone(),
        name: "client".into(),
        scopes: vec![Scope { peers: ClassSet::of([ClassId(1)]), ports: PortSet::All }],
        conditions: Some(Arc::new(Conditions { http: vec![item], ..Conditions::default() })),
    };
    let isolation = vec![Isolation { policy: policy.clone(), ports: IsolatedPorts::All }];
    let layers = [Layer::default(), Layer { isolation, allow: vec![rule] }];
    let profile = Profile { ingress: Side { layers, ..Side::default() }, egress: Side::default() };
    let mut addresses = PrefixTable::new();
    addresses.insert(Prefix::EVERYTHING, ClassId(0));
    addresses.insert(Prefix::host(CLIENT), ClassId(1));
    let workload = Arc::new(Workload {
        namespace: "shop".into(),
        pod: "cart".into(),
        uid: "".into(),
        service_account: "default".into(),
        node: "here".into(),
    });
    let class = |identity| Class { identity, cidrs: Vec::new() };
    Arc::new(Snapshot {
        generation: 1,
        policies: vec![policy],
        classes: vec![class(Identity::Missing), class(Identity::Workload("shop/client".into()))],
        addresses,
        endpoints: vec![Arc::new(Endpoint { workload, addresses: vec![SERVER], profile: ProfileId(0) })]
            .into(),
        profiles: vec![profile].into(),
        workloads: [].into(),
        services: Services::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Every seed, and every input that ever found something.
    #[test]
    fn seeds_and_crashes_find_nothing() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for target in TARGETS {
            let folder = seeds.join(target);
            let mut count = 0;
            for entry in std::fs::read_dir(&folder).expect("a folder for each target") {
                let path = entry.expect("listed").path();
                run(target, &std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")));
                count += 1;
            }
            assert!(count > 0, "{} is empty", folder.display());
        }
    }
}
