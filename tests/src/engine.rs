//! The engine alone: objects to a verdict, without a packet.
//!
//! Reads and compiles as control does, for all nodes at once, and judges as the proxy does. Called by the
//! fixture tests, by the end-to-end tests for what must come out, and by the demo.

use crate::fixture::{Expect, HttpVersion, Protocol, Request};
use anyhow::{Result, bail};
use serde_json::Value;
use sluice_compile::{Enforcement, NodeScope, Options, Rollout, compile};
use sluice_crd::{Loaded, Objects, Severity};
use sluice_policy::path::Path;
use sluice_policy::port::icmp_port;
use sluice_policy::{Decision, Direction, Facts, Outcome, RowAction, Snapshot, Verdict};
use std::net::IpAddr;

/// A compiled cluster.
#[derive(Debug)]
pub struct Engine {
    objects: Objects,
    snapshot: Snapshot,
}

/// A verdict as names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What happens, and what is reported.
    pub outcome: Expect,
    /// The reason's token.
    pub reason: String,
    /// The policy that decided, or nothing.
    pub policy: String,
    /// Its rule, or nothing.
    pub rule: String,
    /// What came nearest to allowing, or nothing.
    pub nearest_miss: String,
    /// Whether the connection is let through, if only to be judged by request.
    pub connects: bool,
    /// Whether the kernel hands the connection to a proxy.
    pub proxied: bool,
}

impl Judged {
    fn new(verdict: &Verdict, connects: bool, proxied: bool) -> Self {
        let side = verdict.deciding();
        Self {
            outcome: match verdict.outcome() {
                Outcome::Allow => Expect::Allow,
                Outcome::Deny => Expect::Deny,
                Outcome::Audit => Expect::Audit,
            },
            reason: side.reason.as_str().to_owned(),
            policy: side.origin().map(ToString::to_string).unwrap_or_default(),
            rule: side.rule.as_deref().unwrap_or_default().to_owned(),
            nearest_miss: side.nearest_miss.as_ref().map(ToString::to_string).unwrap_or_default(),
            connects,
            proxied,
        }
    }

    /// What of the request's expectation is not met.
    #[must_use]
    pub fn differs_from(&self, request: &Request) -> Option<String> {
        let mut wrong = Vec::new();
        if self.outcome != request.expect {
            wrong.push(format!("verdict {}", self.outcome.as_str()));
        }
        for (name, want, got) in [
            ("policy", &request.policy, &self.policy),
            ("rule", &request.rule, &self.rule),
            ("reason", &request.reason, &self.reason),
        ] {
            if want.as_ref().is_some_and(|want| want != got) {
                wrong.push(format!("{name} \"{got}\""));
            }
        }
        if request.nearest_miss.as_ref().is_some_and(|want| !self.nearest_miss.contains(want)) {
            wrong.push(format!("nearest miss \"{}\"", self.nearest_miss));
        }
        (!wrong.is_empty()).then(|| format!("{request}\n      got {} ({self:?})", wrong.join(", ")))
    }
}

impl Engine {
    /// Compiles objects. Any error in them is an error here.
    ///
    /// # Errors
    /// With what is wrong with the objects.
    pub fn new(objects: &[Value]) -> Result<Self> {
        Self::compile(sluice_crd::load_value(objects))
    }

    /// Compiles a directory of manifests.
    ///
    /// # Errors
    /// With what is wrong with the objects.
    pub fn of_directory(directory: &std::path::Path) -> Result<Self> {
        Self::compile(sluice_crd::load_dir(directory))
    }

    fn compile(Loaded { objects, mut problems }: Loaded) -> Result<Self> {
        let compiled = compile(&objects, &options(NodeScope::All));
        problems.extend(compiled.problems);
        problems.retain(|problem| problem.severity == Severity::Error);
        if !problems.is_empty() {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bail!("{}", lines.join("\n"));
        }
        Ok(Self { objects, snapshot: compiled.snapshot })
    }

    /// What one node knows: it judges its own endpoints and no others.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Self {
        let snapshot = compile(&self.objects, &options(NodeScope::Named(node.into()))).snapshot;
        Self { objects: self.objects.clone(), snapshot }
    }

    /// Judges a request between two addresses.
    #[must_use]
    pub fn judge(&self, from: IpAddr, to: IpAddr, request: &Request) -> Judged {
        let protocol = match request.protocol {
            Protocol::Tcp => sluice_policy::Protocol::Tcp,
            Protocol::Udp => sluice_policy::Protocol::Udp,
            Protocol::Icmp => sluice_policy::Protocol::Icmp,
        };
        // ICMP is an echo request of the family that it travels in.
        let port = match request.protocol {
            Protocol::Icmp => icmp_port(to.is_ipv6(), if to.is_ipv6() { 128 } else { 8 }),
            Protocol::Tcp | Protocol::Udp => request.port,
        };
        let judge = |facts: Facts<'_>| self.snapshot.judge(from, to, protocol, port, facts);
        let connection = judge(Facts::Connection);
        let connects = connection.decision() == Decision::Allow;
        let proxied = connects
            && (self.to_proxy(from, to, protocol, port, Direction::Egress)
                || self.to_proxy(to, from, protocol, port, Direction::Ingress));
        let Some((ask, version)) = request.ask() else {
            return Judged::new(&connection, connects, proxied);
        };
        let names: Vec<String> = ask.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let values = ask.headers.iter().map(|(_, value)| value.as_bytes());
        let headers: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(values).collect();
        let version = match version {
            HttpVersion::H1 => sluice_policy::HttpVersion::Http1,
            HttpVersion::H2 => sluice_policy::HttpVersion::Http2,
        };
        let (path, query) =
            ask.path.split_once('?').map_or((ask.path.as_str(), None), |(path, query)| (path, Some(query)));
        let facts = sluice_policy::Request {
            version,
            method: &ask.method,
            path: Path::new(path),
            query,
            host: ask.host.as_deref(),
            upgrade: None,
            headers: &headers,
        };
        Judged::new(&judge(Facts::Request(&facts)), connects, proxied)
    }

    /// Whether the kernel's row on this side of the connection says so.
    fn to_proxy(
        &self,
        endpoint: IpAddr,
        peer: IpAddr,
        protocol: sluice_policy::Protocol,
        port: u16,
        direction: Direction,
    ) -> bool {
        self.snapshot.endpoint_at(endpoint).is_some_and(|endpoint| {
            let Some(profile) = self.snapshot.profile(endpoint.profile) else { return false };
            let connection = self.snapshot.connection(endpoint, direction, peer.into(), protocol, port);
            profile.side(direction).row(&connection).action == RowAction::ToProxy
        })
    }
}

fn options(node: NodeScope) -> Options {
    let rollout = Rollout::AsLabelled { default_dataplane: false, max_enforcement: Enforcement::Enforce };
    Options { node, rollout, generation: 1 }
}
