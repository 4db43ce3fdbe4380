//! A question about a Service's address: it is asked of everybody who stands behind it.
//!
//! As the data plane does it (`sluice_policy::vip`): what is sent there is judged by its backends, of TCP the proxy
//! chooses among those that the sender's egress allows, of anything else all must be allowed.

use super::{Cluster, Port, Query, QueryError, canonical};
use crate::NodeScope;
use sluice_policy::{
    Backend, ClassId, Connection, Decision, Direction, Facts, Protocol, Reason, RowAction, SideVerdict,
    Verdict, Workload,
};
use std::net::IpAddr;
use std::sync::Arc;

/// Who stands behind an address and port of a Service, and what was said of each.
#[derive(Clone, Debug)]
pub struct Behind {
    /// `namespace/name`; of several that claim the same, the first.
    pub service: String,
    /// The backends that may be chosen from where the question is asked.
    pub backends: Vec<Judged>,
    /// Whose verdict is the answer; `None`: nobody stands there.
    pub decides: Option<usize>,
    /// The answer where nobody stands there.
    nobody: Verdict,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct Judged {
    /// It.
    pub backend: Backend,
    /// The pod that has its address.
    pub workload: Option<Arc<Workload>>,
    /// The verdict on it, as if it had been asked for itself.
    pub verdict: Verdict,
}

impl Behind {
    /// The one that decides.
    #[must_use]
    pub fn deciding(&self) -> Option<&Judged> {
        self.backends.get(self.decides?)
    }

    /// The answer.
    pub(super) fn verdict(&self) -> Verdict {
        self.deciding().map_or_else(|| self.nobody.clone(), |judged| judged.verdict.clone())
    }
}

impl Judged {
    /// The same question of this backend. It is asked of it alone, even if its address is another Service's.
    pub(super) fn query(&self, query: &Query) -> Query {
        Query { to: self.backend.address.to_string(), port: Port::Number(self.backend.port), ..query.clone() }
    }
}

impl Cluster {
    /// Who stands behind what a question asks for; `None`: it is no Service's address and port.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn behind(&self, query: &Query) -> Result<Option<Behind>, QueryError> {
        let Ok(vip) = query.to.parse::<IpAddr>().map(canonical) else { return Ok(None) };
        let (from, port) = (self.resolve(&query.from)?, self.port(query)?);
        if self.snapshot.services.at(vip, query.protocol, port).is_none() {
            return Ok(None);
        }
        let own = from.iter().find(|address| address.is_ipv4() == vip.is_ipv4()).unwrap_or(&from[0]);
        Ok(query.said.ask(|facts| self.judge_behind((*own, &from), (vip, query.protocol, port), facts)))
    }

    fn judge_behind(
        &self,
        (from, own): (IpAddr, &[IpAddr]),
        (vip, protocol, port): (IpAddr, Protocol, u16),
        facts: Facts<'_>,
    ) -> Option<Behind> {
        let node = self.snapshot.endpoint_at(from).map(|endpoint| endpoint.workload.node.clone());
        let services = self.services.seen_from(&node.map_or(NodeScope::All, NodeScope::Named));
        let (service, _) = services.at(vip, protocol, port)?;
        let claims = services.claims(vip, protocol, port);
        let mut found: Vec<Backend> = claims.flat_map(|(_, port)| port.of_family(vip)).collect();
        found.sort();
        found.dedup();
        // Nobody takes a packet from itself off the wire, so that nobody is sent back to itself if there are others.
        let is_own = |backend: &Backend| own.contains(&backend.address);
        if !found.iter().all(is_own) {
            found.retain(|backend| !is_own(backend));
        }
        let judged = |backend: Backend| {
            let Backend { address, port } = backend;
            let verdict = self.snapshot.judge(self.source(from, address), address, protocol, port, facts);
            Judged { backend, workload: self.snapshot.workloads.get(&address).cloned(), verdict }
        };
        let backends: Vec<Judged> = found.into_iter().map(judged).collect();
        Some(Behind {
            service: format!("{}/{}", service.namespace, service.name),
            decides: decides(&backends, protocol),
            backends,
            nobody: self.nobody(from, (protocol, port), facts),
        })
    }

    /// The verdict where nobody stands behind an address.
    fn nobody(&self, from: IpAddr, (protocol, port): (Protocol, u16), facts: Facts<'_>) -> Verdict {
        let endpoint = self.snapshot.endpoint_at(from);
        let row = endpoint.and_then(|endpoint| self.snapshot.unserved_row(endpoint.profile));
        let free = endpoint.is_none() || row.is_some_and(|row| row.action != RowAction::Deny);
        let egress = match endpoint.and_then(|endpoint| self.snapshot.profile(endpoint.profile)) {
            _ if free => SideVerdict::unjudged(),
            Some(profile) => {
                let connection = Connection::new(ClassId::MISSING, protocol, port);
                profile.side(Direction::Egress).judge(&connection, facts)
            }
            None => SideVerdict::plain(Decision::Deny, Reason::IdentityMissing),
        };
        // Nobody knows the port that somebody would be sent to.
        let refused = egress.decision == Decision::Deny || free;
        let egress =
            if refused { egress } else { SideVerdict::plain(Decision::Deny, Reason::IdentityMissing) };
        Verdict { egress, ingress: SideVerdict::unjudged() }
    }
}

/// Whose verdict holds for the Service. The sender's side decides who is chosen; where one of those refuses, some
/// connections are refused.
fn decides(backends: &[Judged], protocol: Protocol) -> Option<usize> {
    let denied = |judged: &Judged| judged.verdict.egress.decision == Decision::Deny;
    let refusing = |judged: &Judged| !denied(judged) && judged.verdict.decision() == Decision::Deny;
    let first = |test: &dyn Fn(&Judged) -> bool| backends.iter().position(test);
    let open = first(&|judged| !denied(judged));
    let refused = first(&denied).filter(|_| open.is_none() || protocol != Protocol::Tcp);
    refused.or_else(|| first(&refusing)).or(open)
}
