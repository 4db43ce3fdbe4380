//! The rules of `NetworkPolicy` and of our kinds, piece by piece, with a problem for everything that is not as it
//! should be.
//!
//! Checks shape alone, as `read` does, whose pieces it is made of. Called by it and by `read_tiers`.

use crate::fields;
use crate::l7::{IpBlock, Peer, Port};
use crate::policy::{Part, RuleObject, RuleSection, Rules};
use crate::problem::Severity;
use crate::read::{DENIES_MORE, Reader};
use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

const NO_GRANT: &str = "the rule grants nothing";

impl Reader<'_> {
    pub(crate) fn rules(
        &mut self,
        value: Option<&Value>,
        path: &str,
        peers: &str,
        deny: bool,
    ) -> RuleSection {
        let (whole, one) = match deny {
            true => ("everything is denied here", DENIES_MORE),
            false => ("nothing is granted here", NO_GRANT),
        };
        self.list(value, path, whole, |reader, value, path| reader.rule(value, path, peers, one))
    }

    /// A misspelt deny still was one: what it would have denied nobody knows, so everything is.
    pub(crate) fn denies(&mut self, spec: &Map<String, Value>, field: &str, peers: &str) -> RuleSection {
        let known = fields::known("spec", self.words);
        let misspelt = |given: &&String| {
            !known.contains(&given.as_str()) && fields::nearest(given, known) == Some(field)
        };
        let path = format!("spec.{field}");
        match (spec.get(field), spec.keys().find(misspelt)) {
            (None, Some(given)) => {
                let reason = format!("`{given}` may have been meant; everything is denied here");
                self.report(Severity::Error, &format!("spec.{given}"), reason, format!("write `{field}`"));
                Part::Bad
            }
            (value, _) => self.rules(value, &path, peers, true),
        }
    }

    pub(crate) fn rule(&mut self, value: &Value, path: &str, peers: &str, effect: &str) -> RuleObject {
        let mut rule = RuleObject {
            path: path.to_owned(),
            sound: !self.is_marred_itself(path),
            name: None,
            peers: Part::Bad,
            ports: Part::Bad,
            rules: Part::Bad,
        };
        let Value::Object(fields_given) = value else {
            rule.sound = false;
            let reason = format!("a rule is expected here; {effect}");
            self.report(Severity::Error, path, reason, format!("write its fields: {peers}, ports"));
            return rule;
        };
        let known = fields::known(path, self.words);
        for field in fields_given.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, path, field, effect);
            rule.sound = false;
        }
        let at = format!("{path}.{peers}");
        rule.peers = if self.is_l7() {
            self.list(fields_given.get(peers), &at, effect, |r, v, p| r.item::<Peer>(v, p, effect))
        } else {
            self.list(fields_given.get(peers), &at, effect, |r, v, p| {
                r.item::<NetworkPolicyPeer>(v, p, effect).map(peer)
            })
        };
        let at = format!("{path}.ports");
        rule.ports = if self.is_l7() {
            self.list(fields_given.get("ports"), &at, effect, |r, v, p| r.item::<Port>(v, p, effect))
        } else {
            self.list(fields_given.get("ports"), &at, effect, |r, v, p| {
                r.item::<NetworkPolicyPort>(v, p, effect).map(port)
            })
        };
        rule.rules = Part::Absent;
        if self.is_l7() {
            let name = self.part::<String>(fields_given.get("name"), &format!("{path}.name"), effect);
            rule.sound &= name.is_sound();
            rule.name = name.value().map(|name| name.as_str().into());
            rule.rules = self.conditions(fields_given.get("rules"), &format!("{path}.rules"), effect);
        }
        rule
    }

    /// One item of a list; null is no item.
    pub(crate) fn item<T: DeserializeOwned>(&mut self, value: &Value, path: &str, effect: &str) -> Part<T> {
        if value.is_null() {
            let reason = format!("an empty item; {effect}");
            self.report(Severity::Error, path, reason, "remove it, or write {} if you mean it");
            return Part::Bad;
        }
        self.part(Some(value), path, effect)
    }

    fn conditions(&mut self, value: Option<&Value>, path: &str, effect: &str) -> Part<Rules> {
        let given = match value {
            None if self.is_marred(path) => return Part::Bad,
            None => return Part::Absent,
            Some(Value::Object(given)) => given,
            Some(_) => {
                let reason = format!("http, grpc or tls is expected here; {effect}");
                self.report(Severity::Error, path, reason, "remove `rules`, or write what must be said");
                return Part::Bad;
            }
        };
        let mut sound = !self.is_marred_itself(path);
        let known = fields::known(path, self.words);
        for field in given.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, path, field, effect);
            sound = false;
        }
        let rules = Rules {
            http: self
                .list(given.get("http"), &format!("{path}.http"), effect, |r, v, p| r.item(v, p, effect)),
            grpc: self
                .list(given.get("grpc"), &format!("{path}.grpc"), effect, |r, v, p| r.item(v, p, effect)),
            tls: self.part(given.get("tls"), &format!("{path}.tls"), effect),
        };
        if sound { Part::Whole(rules) } else { Part::Flawed(rules) }
    }
}

fn peer(peer: NetworkPolicyPeer) -> Peer {
    Peer {
        pod_selector: peer.pod_selector,
        namespace_selector: peer.namespace_selector,
        ip_block: peer.ip_block.map(|block| IpBlock { cidr: block.cidr, except: block.except }),
        service_accounts: None,
        entities: None,
    }
}

fn port(port: NetworkPolicyPort) -> Port {
    Port { port: port.port, protocol: port.protocol, end_port: port.end_port }
}
