//! The one place that asks the verdict engine.
//!
//! Turns a connection's two addresses and what was said into facts. Knows nothing of how a verdict is carried out.
//! Called by the servers for each request and by [`State::swap`](crate::state::State::swap) for open flows.

use crate::state::View;
use http::{HeaderName, HeaderValue};
use sluice_policy::path::Path;
use sluice_policy::{
    Decision, Direction, Facts, HttpMatch, HttpVersion, Mode, Protocol, Reason, Request, SideVerdict,
    TierAction, Verdict,
};
use std::net::{IpAddr, SocketAddr};

/// The two ends of a proxied connection, as the client sees them; v4-mapped addresses are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The client. The datapath has verified the address.
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
}

impl Leg {
    /// A leg of these two addresses, `::ffff:a.b.c.d` taken for `a.b.c.d`.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { source: plain(source), destination: plain(destination) }
    }
}

/// A header or trailer field. Both halves share the bytes they were read from: with HPACK a reference of one byte
/// stands for kilobytes, and a copy of each would fill the memory.
pub type Field = (HeaderName, HeaderValue);

/// Fields that most requests have at most.
const FEW_FIELDS: usize = 24;

/// What judging something came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// The path that must go on in place of the one sent. An allow with a path condition matches the normalised path,
    /// so the server must see no other.
    pub path: Option<String>,
    /// It is refused for its form alone, and no policy stands behind that.
    pub malformed: bool,
}

impl Judged {
    /// A verdict alone.
    #[must_use]
    pub const fn of(verdict: Verdict) -> Self {
        Self { verdict, path: None, malformed: false }
    }

    /// Whether it is refused.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.verdict.decision() == Decision::Deny
    }
}

/// One request as it is kept: owned, so that it can be judged again while it is open.
#[derive(Clone, Debug)]
pub struct Said {
    /// The HTTP version.
    pub version: HttpVersion,
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, without its question mark.
    pub query: Option<String>,
    /// `Host` or `:authority`.
    pub host: Option<String>,
    /// The header fields; names in lower case.
    pub headers: Vec<Field>,
    /// `:protocol` of an extended CONNECT (RFC 8441 §4), HTTP/2's way to ask for an upgrade.
    pub protocol: Option<String>,
}

impl Said {
    /// Judges the request by this snapshot; a path goes on in place of the one sent where the two differ and a path
    /// was judged. Since another rule may have matched the bytes as sent (gRPC routes by them), what goes on has to be
    /// allowed itself.
    #[must_use]
    pub fn judge(&self, view: &View, leg: &Leg) -> Judged {
        let verdict = self.ask(view, leg, &self.path);
        if verdict.decision() == Decision::Deny {
            return Judged::of(verdict);
        }
        let path = Path::new(&self.path);
        let Some(rewritten) = path.rewritten().filter(|_| path_matters(view, leg)) else {
            return Judged::of(verdict);
        };
        let again = self.ask(view, leg, rewritten);
        match again.decision() {
            Decision::Deny => Judged::of(again),
            Decision::Allow => Judged { path: Some(rewritten.to_owned()), ..Judged::of(verdict) },
        }
    }

    fn ask(&self, view: &View, leg: &Leg, path: &str) -> Verdict {
        // Of nearly all requests on the stack.
        let mut few = [("", [].as_slice()); FEW_FIELDS];
        let many: Vec<(&str, &[u8])>;
        let all = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let headers = if let Some(few) = few.get_mut(..self.headers.len()) {
            few.iter_mut().zip(all).for_each(|(place, field)| *place = field);
            &*few
        } else {
            many = all.collect();
            &many
        };
        let request = Request {
            version: self.version,
            method: &self.method,
            path: Path::new(path),
            query: self.query.as_deref(),
            host: self.host.as_deref(),
            upgrade: self.upgrade(),
            headers,
        };
        ask(view, leg, Facts::Request(&request))
    }

    /// What the request asks to be upgraded to: `Upgrade` in HTTP/1.1, `:protocol` in HTTP/2. A token that is no text
    /// is one that no rule names.
    fn upgrade(&self) -> Option<&str> {
        if self.version == HttpVersion::Http2 {
            return self.protocol.as_deref();
        }
        let asked = self.headers.iter().find(|(name, _)| name == http::header::UPGRADE);
        asked.map(|(_, token)| token.to_str().unwrap_or_default())
    }

    /// Whether it asks for a tunnel through the server, to a host and to nothing else (RFC 9110 §9.3.6).
    #[must_use]
    pub fn is_plain_connect(&self) -> bool {
        self.method == "CONNECT" && self.protocol.is_none()
    }

    /// Whether the request would still be let through with these trailers among its headers: some servers merge them.
    #[must_use]
    pub fn admits(&self, view: &View, leg: &Leg, trailers: Vec<Field>) -> bool {
        let mut merged = self.clone();
        merged.headers.extend(trailers);
        !merged.judge(view, leg).is_denied()
    }

    /// Whether the request is gRPC by its content type: how a refusal is worded, never whether.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.version == HttpVersion::Http2
            && self.headers.iter().any(|(name, value)| {
                name == "content-type"
                    && value
                        .as_bytes()
                        .strip_prefix(b"application/grpc")
                        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
            })
    }
}

/// Whether the connection is let through, if only to be judged by request.
#[must_use]
pub fn connection(view: &View, leg: &Leg) -> Verdict {
    ask(view, leg, Facts::Connection)
}

/// Whether bytes that nobody here can read are let through.
#[must_use]
pub fn unknown(view: &View, leg: &Leg) -> Verdict {
    ask(view, leg, Facts::Unknown)
}

/// Whether a TLS connection to this server name is let through.
#[must_use]
pub fn tls(view: &View, leg: &Leg, server_name: Option<&str>) -> Verdict {
    ask(view, leg, Facts::Tls(server_name))
}

/// A refusal that no policy stands behind.
#[must_use]
pub fn refuse(reason: Reason) -> Verdict {
    Verdict { egress: SideVerdict::unjudged(), ingress: SideVerdict::plain(Decision::Deny, reason) }
}

fn ask(view: &View, leg: &Leg, facts: Facts<'_>) -> Verdict {
    let (source, destination) = (leg.source.ip(), leg.destination.ip());
    // A connection of nobody here: the endpoint has gone, or the datapath sent something that is not ours. The
    // engine would have nothing to judge and would let it pass.
    if !view.is_local(source) && !view.is_local(destination) {
        return refuse(Reason::IdentityMissing);
    }
    view.snapshot.judge(source, destination, Protocol::Tcp, leg.destination.port(), facts)
}

/// Whether an allow that reaches this connection has a condition on the path.
fn path_matters(view: &View, leg: &Leg) -> bool {
    any_allow(view, leg, |item| item.path.is_some())
}

/// Whether a WebSocket may pass between these two, by what some request may say: where no rule names one, none is
/// offered.
#[must_use]
pub fn upgrades(view: &View, leg: &Leg) -> bool {
    any_allow(view, leg, |item| !item.upgrades.is_empty()) || unknown(view, leg).decision() == Decision::Allow
}

/// Whether an alternative of an allow in force that reaches this connection is such a one.
fn any_allow(view: &View, leg: &Leg, is: impl Fn(&HttpMatch) -> bool) -> bool {
    let snapshot = &view.snapshot;
    let port = leg.destination.port();
    let on = |endpoint: IpAddr, peer: IpAddr, direction: Direction| {
        let profile = snapshot.endpoint_at(endpoint).and_then(|endpoint| snapshot.profile(endpoint.profile));
        let peer = snapshot.class_of(peer);
        profile.is_some_and(|profile| {
            let side = profile.side(direction);
            let tiers = side.admin.iter().chain(&side.baseline);
            let granting =
                tiers.filter(|tiered| tiered.action != TierAction::Deny).map(|tiered| &tiered.rule);
            side.layers.iter().flat_map(|layer| &layer.allow).chain(granting).any(|rule| {
                rule.policy.mode == Mode::Enforce
                    && rule.allows_reach(peer, Protocol::Tcp, port)
                    && rule.conditions.as_ref().is_some_and(|c| c.http.iter().any(&is))
            })
        })
    };
    on(leg.source.ip(), leg.destination.ip(), Direction::Egress)
        || on(leg.destination.ip(), leg.source.ip(), Direction::Ingress)
}
