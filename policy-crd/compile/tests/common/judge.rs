//! A question of the generators put to the engine itself: with TLS and unreadable bytes, which questions by name lack.
//!
//! Used by the tests of invariants. Needs `reference` and `generate` beside it.

use crate::reference::verdict::{Asked, Said};
use sluice_policy::path::Path;
use sluice_policy::{Facts, HttpVersion, Protocol, Request, Snapshot, Verdict};

/// The verdict of a snapshot of all nodes.
#[allow(dead_code, reason = "not every test binary asks whole questions")]
pub(crate) fn judge(snapshot: &Snapshot, asked: &Asked) -> Verdict {
    let protocol = Protocol::parse(asked.protocol).expect("a protocol");
    with_facts(&asked.said, |facts| snapshot.judge(asked.from, asked.to, protocol, asked.port, facts))
}

/// What is said, as the engine takes it.
pub(crate) fn with_facts<T>(said: &Said, then: impl FnOnce(Facts<'_>) -> T) -> T {
    let request = match said {
        Said::Nothing => return then(Facts::Connection),
        Said::Bytes => return then(Facts::Unknown),
        Said::Tls(name) => {
            let name = name.as_deref().map(str::to_ascii_lowercase);
            return then(Facts::Tls(name.as_deref()));
        }
        Said::Http(request) => request,
    };
    let (path, query) =
        request.target.split_once('?').map_or((&*request.target, None), |(p, q)| (p, Some(q)));
    let headers: Vec<(String, &[u8])> =
        request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_bytes())).collect();
    let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let upgrade = request.header("upgrade").next();
    let request = Request {
        version: if request.version == 2 { HttpVersion::Http2 } else { HttpVersion::Http1 },
        method: &request.method,
        path: Path::new(path),
        query,
        host: request.host.as_deref(),
        upgrade,
        headers: &headers,
    };
    then(Facts::Request(&request))
}
