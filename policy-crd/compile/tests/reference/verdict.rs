//! The order of tiers, denies and layers, both sides, and audit.
//!
//! Source: DESIGN §5.1 to §5.6 and §5.14.

use super::cluster::{Cluster, Pod, Who};
use super::tiers::{self, Action};
use super::{cilium, l7, networkpolicy};
use serde_json::Value;
use std::net::IpAddr;

/// Whether something holds. `Maybe`: it depends on a request that nobody has made yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    No,
    Maybe,
    Yes,
}

impl Truth {
    /// Whether one of them holds.
    pub(crate) fn or(self, other: Self) -> Self {
        self.max(other)
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// Whether a condition opens something or closes it: what is in doubt is taken on the closed side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polarity {
    /// Of an allow, an Accept or a Pass.
    Allow,
    /// Of a deny.
    Deny,
}

/// A direction, as seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// The word of `policyTypes`.
    pub(crate) fn word(self) -> &'static str {
        if self == Self::Ingress { "Ingress" } else { "Egress" }
    }

    /// The list of rules.
    pub(crate) fn section(self) -> &'static str {
        if self == Self::Ingress { "ingress" } else { "egress" }
    }

    /// The list of peers in a rule.
    pub(crate) fn peers(self) -> &'static str {
        if self == Self::Ingress { "from" } else { "to" }
    }
}

/// The question.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub(crate) protocol: &'static str,
    /// The destination port.
    pub(crate) port: u16,
    /// Whether a process of the node itself is at the other end of `from`, where that is a node's address: "only a
    /// packet that a local, non-proxy socket of the node sent is `Host`".
    pub(crate) socket: bool,
    pub(crate) said: Said,
}

/// What is said over the connection.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// Nothing yet: is the connection let through, if only to be judged by request?
    Nothing,
    Http(Http),
    /// TLS, with its server name if it says one.
    Tls(Option<String>),
    /// Bytes that nobody can read.
    Bytes,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    /// 1 or 2.
    pub(crate) version: u8,
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) host: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    /// Whether denies consider the rarer readings of the path too.
    pub(crate) far: bool,
}

impl Http {
    /// "The query is not part of the path."
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// What follows the first question mark.
    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The values of a header, by its name in any case.
    pub(crate) fn header(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |field| field.0.eq_ignore_ascii_case(name))
            .map(|field| field.1.as_str())
    }
}

/// The question as one pod sees it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The pod whose policies speak.
    pub(crate) own: &'a Pod,
    pub(crate) peer: Who<'a>,
    pub(crate) peer_address: IpAddr,
    /// The node that the pod runs on is the one that asks, and not what came through it.
    pub(crate) from_host: bool,
    pub(crate) direction: Direction,
    pub(crate) protocol: &'a str,
    pub(crate) port: u16,
    pub(crate) said: &'a Said,
}

impl<'a> View<'a> {
    /// What the pod on one end sees. `None`: there is no pod.
    pub(crate) fn of(cluster: &'a Cluster, asked: &'a Asked, direction: Direction) -> Option<Self> {
        let ingress = direction == Direction::Ingress;
        let (own, peer_address) = if ingress { (asked.to, asked.from) } else { (asked.from, asked.to) };
        let Who::Pod(own) = cluster.who(own) else { return None };
        let peer = cluster.who(peer_address);
        let own_node = ingress && matches!(peer, Who::Node(node) if node.name == own.node);
        // "Forwarded traffic that wears a node's address … is judged by conntrack's original source, else as
        // `identity_missing`."
        let peer = if own_node && !asked.socket { Who::Missing } else { peer };
        let (protocol, port, said) = (asked.protocol, asked.port, &asked.said);
        let from_host = own_node && asked.socket;
        Some(Self { cluster, own, peer, peer_address, from_host, direction, protocol, port, said })
    }

    /// Whether the API server answers at the peer's address. Nobody knows it of an address that is nobody's.
    pub(crate) fn is_api_server(&self) -> bool {
        !matches!(self.peer, Who::Missing) && self.cluster.api_server.contains(&self.peer_address)
    }

    /// The pod that is reached, if it is one: ports are its.
    pub(crate) fn destination(&self) -> Option<&Pod> {
        match (self.direction, self.peer) {
            (Direction::Ingress, _) => Some(self.own),
            (Direction::Egress, Who::Pod(pod)) => Some(pod),
            (Direction::Egress, _) => None,
        }
    }

    /// Whether the port that is reached has this name there.
    pub(crate) fn has_port(&self, name: &str) -> bool {
        let wanted = (name, self.protocol, self.port);
        self.destination()
            .is_some_and(|pod| pod.ports.iter().any(|port| (&*port.0, &*port.1, port.2) == wanted))
    }
}

/// What one rule says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ruling {
    /// It names this peer and this port.
    pub(crate) named: bool,
    /// It matches, with all that must be said.
    pub(crate) holds: Truth,
    /// It may match or not by what is said later, or some part of it may.
    pub(crate) asks: bool,
}

/// An answer of one side, with the word that the design has for its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) allowed: Truth,
    pub(crate) reason: &'static str,
}

const NOT_ISOLATED: Answer = Answer { allowed: Truth::Yes, reason: "not_isolated" };
const MATCHED: Answer = Answer { allowed: Truth::Yes, reason: "rule_matched" };
const DENIED: Answer = Answer { allowed: Truth::No, reason: "deny_rule" };

/// What is to be said of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) allowed: bool,
    pub(crate) reason: &'static str,
    /// The audited policies that, each alone, would turn the allow into a deny; sorted.
    pub(crate) would_deny: Vec<String>,
    pub(crate) together_deny: bool,
    pub(crate) would_allow: bool,
}

impl Side {
    /// "`audit` is reported only where enforcing allows and enforcing + audited denies."
    pub(crate) fn outcome(&self) -> &'static str {
        match self.allowed {
            false => "deny",
            true if self.together_deny || !self.would_deny.is_empty() => "audit",
            true => "allow",
        }
    }
}

/// "The source's egress side and the destination's ingress side must both allow." `None`: a pod talking to itself,
/// which "is never judged".
pub(crate) fn judge(cluster: &Cluster, asked: &Asked) -> Option<(Side, Side)> {
    let (from, to) = (cluster.who(asked.from), cluster.who(asked.to));
    if let (Who::Pod(one), Who::Pod(other)) = (from, to)
        && std::ptr::eq(one, other)
    {
        return None;
    }
    let side = |direction| match View::of(cluster, asked, direction) {
        Some(view) => with_audit(&view),
        // No endpoint of ours: nobody speaks for it.
        None => plain(NOT_ISOLATED),
    };
    Some((side(Direction::Egress), side(Direction::Ingress)))
}

fn plain(answer: Answer) -> Side {
    Side {
        // A connection that some request may use is let through.
        allowed: answer.allowed != Truth::No,
        reason: answer.reason,
        would_deny: Vec::new(),
        together_deny: false,
        would_allow: false,
    }
}

/// Whether a policy is in force.
pub(crate) fn enforced(policy: &Value) -> bool {
    policy["spec"]["mode"] != "Audit"
}

/// "What happens is always the verdict of the enforcing policies alone. … It is computed for each audited policy
/// alone and for all together, so that promoting one, or all, does exactly what was said."
fn with_audit(view: &View<'_>) -> Side {
    let mut out = plain(side(view, &enforced));
    let denies = |active: &dyn Fn(&Value) -> bool| side(view, active).allowed == Truth::No;
    if out.allowed {
        let audited = view.cluster.policies.iter().filter(|policy| !enforced(policy));
        for one in audited {
            if denies(&|policy| enforced(policy) || std::ptr::eq(policy, one)) {
                out.would_deny.push(networkpolicy::name(one));
            }
        }
        out.would_deny.sort();
        out.together_deny = denies(&|_| true);
    } else {
        out.would_allow = !denies(&|_| true);
    }
    out
}

/// "One side, in order: Admin tier (Accept ends it, Deny ends it, Pass goes on) → deny rules of namespaced policies →
/// the allow layers → allow."
pub(crate) fn side(view: &View<'_>, active: &dyn Fn(&Value) -> bool) -> Answer {
    first_match(&tiers::rules(view, "Admin", active), &|| namespaced(view, active))
}

/// "Ordered, first match wins."
fn first_match(rules: &[(Action, Truth)], rest: &dyn Fn() -> Answer) -> Answer {
    let Some(((action, matched), later)) = rules.split_first() else { return rest() };
    let taken = || match action {
        Action::Accept => MATCHED,
        Action::Deny => DENIED,
        // "Skips all further rules in the current tier, and passes evaluation to the next tier."
        Action::Pass => rest(),
    };
    depends(*matched, &taken, &|| first_match(later, rest))
}

/// One of two answers; where it is not known which, the one that lets more through.
fn depends(on: Truth, then: &dyn Fn() -> Answer, otherwise: &dyn Fn() -> Answer) -> Answer {
    match on {
        Truth::Yes => then(),
        Truth::No => otherwise(),
        Truth::Maybe => {
            let (then, otherwise) = (then(), otherwise());
            let best = if then.allowed > otherwise.allowed { then } else { otherwise };
            let certain = then.allowed == otherwise.allowed;
            Answer { allowed: if certain { best.allowed } else { Truth::Maybe }, ..best }
        }
    }
}

fn namespaced(view: &View<'_>, active: &dyn Fn(&Value) -> bool) -> Answer {
    // "The node itself reaches pods of its own node (kubelet probes) unless an Admin policy denies it."
    if view.from_host {
        return NOT_ISOLATED;
    }
    let voice = Voice::hear(view, active);
    let denied = voice.denies.iter().map(|ruling| ruling.holds).fold(Truth::No, Truth::or);
    depends(denied, &|| DENIED, &|| voice.layers(view, active))
}

/// What the namespaced policies that select a pod say, and Cilium's clusterwide ones with them.
#[derive(Default)]
pub(super) struct Voice {
    pub(super) denies: Vec<Ruling>,
    /// "Layer K is NetworkPolicy ∪ CiliumNetworkPolicy: who may connect."
    pub(super) k: Layer,
    /// "Layer L is L7NetworkPolicy: what they may say."
    pub(super) l: Layer,
}

#[derive(Default)]
pub(super) struct Layer {
    pub(super) isolates: bool,
    pub(super) allows: Vec<Ruling>,
}

impl Voice {
    pub(super) fn hear(view: &View<'_>, active: &dyn Fn(&Value) -> bool) -> Self {
        let mut voice = Self::default();
        for policy in view.cluster.policies.iter().filter(|policy| active(policy)) {
            match policy["kind"].as_str() {
                Some("NetworkPolicy") if networkpolicy::selects(policy, view.own) => {
                    let affects = networkpolicy::affects(policy, view.direction);
                    voice.k.isolates |= affects;
                    voice.k.allows.extend(networkpolicy::rules(policy, view).into_iter().filter(|_| affects));
                }
                Some("L7NetworkPolicy") if l7::selects(policy, view.own) => {
                    voice.l.isolates |= l7::isolates(policy, view);
                    voice.l.allows.extend(l7::allows(policy, view));
                    voice.denies.extend(l7::denies(policy, view));
                }
                Some("CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => {
                    for spec in cilium::specs(policy) {
                        if cilium::selects(policy, spec, view.own, view) {
                            voice.k.isolates |= cilium::isolates(spec, view.direction);
                            voice.k.allows.extend(cilium::allows(policy, spec, view));
                            voice.denies.extend(cilium::denies(policy, spec, view));
                        }
                    }
                }
                _ => {}
            }
        }
        voice
    }

    /// "The allow layers are ANDed. … Where K is silent on a pod and direction, the Baseline tier speaks in its
    /// place."
    fn layers(&self, view: &View<'_>, active: &dyn Fn(&Value) -> bool) -> Answer {
        let k = if self.k.isolates {
            self.k.answer(view)
        } else {
            first_match(&tiers::rules(view, "Baseline", active), &|| NOT_ISOLATED)
        };
        let l = self.l.answer(view);
        if k.allowed == Truth::No || (l.allowed != Truth::No && k.reason == "rule_matched") {
            Answer { allowed: k.allowed.min(l.allowed), ..k }
        } else {
            Answer { allowed: k.allowed.min(l.allowed), ..l }
        }
    }
}

impl Layer {
    /// "A layer that isolates the pod in that direction must allow; a layer that does not is silent. Inside a layer,
    /// allows are a union."
    fn answer(&self, view: &View<'_>) -> Answer {
        if !self.isolates {
            return NOT_ISOLATED;
        }
        let allowed = self.allows.iter().map(|ruling| ruling.holds).fold(Truth::No, Truth::or);
        let reason = match view.peer {
            _ if allowed != Truth::No => "rule_matched",
            Who::Missing => "identity_missing",
            // "Reasons kept apart": a rule asked for something that can be read, and this cannot.
            _ if self.allows.iter().any(|ruling| ruling.named) => match view.said {
                Said::Bytes => "parse_error",
                _ => "no_rule_matched",
            },
            _ => "default_deny",
        };
        Answer { allowed, reason }
    }
}
