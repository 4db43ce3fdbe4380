//! Objects as JSON in, verdicts out: what the compiler's tests share.

#![allow(dead_code, reason = "every test binary uses its part")]

pub(crate) mod cilium;
pub(crate) mod corpus;
pub(crate) mod renumbered;

use serde_json::Value;
use sluice_compile::Rollout;
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_crd::Problem;
use sluice_policy::{Decision, Protocol, Verdict};

/// A cluster of these objects, and everything that was wrong with them.
pub(crate) fn load(objects: &[Value]) -> (Cluster, Vec<Problem>) {
    load_with(objects, Rollout::AsIfEnforced)
}

/// The same, with a rollout.
pub(crate) fn load_with(objects: &[Value], rollout: Rollout) -> (Cluster, Vec<Problem>) {
    let loaded = sluice_crd::load_value(objects);
    let cluster = Cluster::new(&loaded.objects, rollout);
    let problems = loaded.problems.into_iter().chain(cluster.problems.iter().cloned()).collect();
    (cluster, problems)
}

/// A question.
#[derive(Debug)]
pub(crate) struct Ask(Query);

impl Ask {
    /// `request` is `GET /path`, or nothing.
    pub(crate) fn new(from: &str, to: &str, port: u16, request: &str) -> Self {
        let said = request.split_once(' ').map_or(Said::Nothing, |(method, target)| Said::Http {
            method: method.into(),
            target: target.into(),
            host: None,
            headers: vec![("x-a".into(), "1".into())],
        });
        let protocol = Protocol::Tcp;
        Self(Query { from: from.into(), to: to.into(), protocol, port: Port::Number(port), said })
    }

    /// To this host.
    pub(crate) fn host(mut self, name: &str) -> Self {
        if let Said::Http { host, .. } = &mut self.0.said {
            *host = Some(name.to_owned());
        }
        self
    }

    /// By another protocol.
    pub(crate) fn over(mut self, protocol: Protocol) -> Self {
        self.0.protocol = protocol;
        self
    }

    /// The verdict.
    pub(crate) fn verdict(&self, cluster: &Cluster) -> Verdict {
        cluster.ask(&self.0).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// The decision.
    pub(crate) fn decide(&self, cluster: &Cluster) -> Decision {
        self.verdict(cluster).decision()
    }
}
