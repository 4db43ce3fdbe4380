//! A question of the generators put to the engine itself: with TLS and unreadable bytes, which questions by name lack.
//!
//! Used by the tests of invariants, of rows and of the second opinion. Needs `reference` and `generate` beside it.

#![allow(dead_code, reason = "not every test binary asks whole questions")]

use crate::reference::verdict::{Asked, Said};
use sluice_policy::path::Path;
use sluice_policy::{Facts, HttpVersion, Protocol, Request, Snapshot, Source, Verdict};

/// The verdict of a snapshot of all nodes.
pub(crate) fn judge(snapshot: &Snapshot, asked: &Asked) -> Verdict {
    let protocol = Protocol::parse(asked.protocol).expect("a protocol");
    with_facts(&asked.said, |facts| {
        snapshot.judge(source(snapshot, asked), asked.to, protocol, asked.port, facts)
    })
}

/// Where it comes from: a node's own socket is known as one on that node alone.
pub(crate) fn source(snapshot: &Snapshot, asked: &Asked) -> Source {
    let class = snapshot.class_of(asked.from);
    let own = snapshot.endpoint_at(asked.to).is_some_and(|to| snapshot.is_node(class, &to.workload.node));
    if own && asked.socket { Source::Host(asked.from) } else { Source::Address(asked.from) }
}

/// What is said, as the engine takes it.
pub(crate) fn with_facts<T>(said: &Said, then: impl FnOnce(Facts<'_>) -> T) -> T {
    let request = match said {
        Said::Nothing => return then(Facts::Connection),
        Said::Bytes => return then(Facts::Unknown),
        Said::Tls(name) => {
            // In lower case and without a trailing dot, as facts have it.
            let name = name.as_deref().map(str::to_ascii_lowercase);
            return then(Facts::Tls(name.as_deref().map(|name| name.strip_suffix('.').unwrap_or(name))));
        }
        Said::Http(request) => request,
    };
    let (path, query) =
        request.target.split_once('?').map_or((&*request.target, None), |(p, q)| (p, Some(q)));
    let headers: Vec<(String, &[u8])> =
        request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_bytes())).collect();
    let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    // Several fields are one list (RFC 9110 §5.3).
    let upgrades: Vec<&str> = request.header("upgrade").collect();
    let upgrades = upgrades.join(", ");
    let request = Request {
        version: if request.version == 2 { HttpVersion::Http2 } else { HttpVersion::Http1 },
        method: &request.method,
        path: Path::new(path),
        query,
        host: request.host.as_deref(),
        upgrade: (!upgrades.is_empty()).then_some(&*upgrades),
        headers: &headers,
    };
    then(Facts::Request(&request))
}
