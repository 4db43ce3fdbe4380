//! The two tiered kinds, piece by piece, with a problem for everything that is not as it should be.
//!
//! Checks shape alone, as `read` does, whose pieces it is made of. Called by the loader.

use crate::bounds;
use crate::cluster_l7::{Action, Subject, Tier};
use crate::cluster_network::{ClusterPeer, ClusterProtocol};
use crate::decode::joined;
use crate::fields::{self, Words};
use crate::l7::{DenyAction, DenyDetail, Mode};
use crate::policy::{Part, RuleObject};
use crate::problem::Severity;
use crate::read::{DENIES_MORE, Reader};
use crate::tiered::{ClusterL7Object, ClusterNetworkObject, ClusterRuleObject, TieredObject, TieredRule};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

const OBJECT_CLOSED: &str = "the policy accepts nothing, and denies what it would pass";
const ALL_DENIED: &str = "everything is denied here";
const NO_ACCEPT: &str = "the rule accepts nothing";
const NO_PASS: &str = "the rule denies, as if this did not limit it, and passes nothing";

impl Reader<'_> {
    /// A `ClusterNetworkPolicy`.
    pub(crate) fn cluster_network(&mut self, value: &Map<String, Value>) -> ClusterNetworkObject {
        self.words = Words::ClusterNetwork;
        self.tiered(value, Reader::cluster_rule)
    }

    /// A `ClusterL7NetworkPolicy`.
    pub(crate) fn cluster_l7(&mut self, value: &Map<String, Value>) -> ClusterL7Object {
        self.words = Words::ClusterL7;
        self.hold(&bounds::CLUSTER_L7, value);
        let mut policy = self.tiered(value, |reader, value, path, peers, effect| -> RuleObject {
            reader.rule(value, path, peers, effect)
        });
        let spec = value.get("spec");
        (policy.mode, policy.deny_action, policy.deny_detail) =
            self.answers(|field| spec.and_then(|spec| spec.get(field)));
        policy.clean = policy.sound && !self.has_error();
        policy
    }

    fn tiered<R>(
        &mut self,
        value: &Map<String, Value>,
        rule: impl Fn(&mut Self, &Value, &str, &str, &str) -> R,
    ) -> TieredObject<R> {
        let (_, name) = self.metadata(value, OBJECT_CLOSED);
        let mut policy = TieredObject {
            sound: !name.is_empty(),
            clean: true,
            name,
            source: self.source().clone(),
            tier: Part::Bad,
            priority: Part::Bad,
            subject: Part::Bad,
            mode: Mode::Enforce,
            deny_action: DenyAction::Drop,
            deny_detail: DenyDetail::None,
            ingress: Part::Bad,
            egress: Part::Bad,
        };
        let namespace = value.get("metadata").and_then(|metadata| metadata.get("namespace"));
        if namespace.is_some_and(|given| !given.is_null() && given != "") {
            // Its author took it for narrower than it is.
            let reason = format!("the kind belongs to no namespace; {OBJECT_CLOSED}");
            let remedy = "remove it, and name the namespaces in spec.subject";
            self.report(Severity::Error, "metadata.namespace", reason, remedy);
            policy.sound = false;
        }
        for field in value.keys() {
            if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata" | "spec" | "status") {
                self.unknown(Severity::Error, "", field, OBJECT_CLOSED);
                policy.sound = false;
            }
        }
        match value.get("spec") {
            Some(Value::Object(spec)) => self.tiered_spec(spec, &mut policy, rule),
            _ => {
                let reason = "there is no spec; everything is denied to every pod";
                let remedy = "write spec.tier, priority, subject and the rules";
                self.report(Severity::Error, "spec", reason, remedy);
                policy.sound = false;
            }
        }
        policy.clean = policy.sound && !self.has_error();
        policy
    }

    fn tiered_spec<R>(
        &mut self,
        spec: &Map<String, Value>,
        policy: &mut TieredObject<R>,
        rule: impl Fn(&mut Self, &Value, &str, &str, &str) -> R,
    ) {
        let known = fields::known("spec", self.words);
        for field in spec.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, "spec", field, OBJECT_CLOSED);
            policy.sound = false;
        }
        if self.is_marred_itself("spec") {
            policy.sound = false;
        }
        let closed = "the policy denies in the Admin tier, and accepts and passes nothing";
        policy.tier = self.needed::<Tier>(spec, "tier", closed, "write Admin or Baseline");
        let closed = "the policy denies before all others of its tier, and accepts and passes nothing";
        policy.priority = self.needed::<i32>(spec, "priority", closed, "write a number from 0 to 1000");
        let closed = "the policy denies to every pod, and accepts and passes nothing";
        policy.subject = self.needed::<Subject>(spec, "subject", closed, "write namespaces or pods in it");
        policy.ingress = self.tiered_rules(spec, "ingress", "from", &rule);
        policy.egress = self.tiered_rules(spec, "egress", "to", &rule);
    }

    /// A part of the spec that has no default.
    fn needed<T: DeserializeOwned>(
        &mut self,
        spec: &Map<String, Value>,
        field: &str,
        effect: &str,
        remedy: &str,
    ) -> Part<T> {
        let path = joined("spec", field);
        let part = self.part(spec.get(field), &path, effect);
        if part.is_absent() {
            self.report(Severity::Error, &path, format!("there is no {field}; {effect}"), remedy);
            return Part::Bad;
        }
        part
    }

    /// One direction. A misspelt one still was one: what it would have denied nobody knows, so everything is.
    fn tiered_rules<R>(
        &mut self,
        spec: &Map<String, Value>,
        field: &str,
        peers: &str,
        rule: &impl Fn(&mut Self, &Value, &str, &str, &str) -> R,
    ) -> Part<Vec<TieredRule<R>>> {
        let known = fields::known("spec", self.words);
        let meant = |given: &&String| {
            !known.contains(&given.as_str())
                && (fields::nearest(given, known) == Some(field) || given.to_lowercase().starts_with(field))
        };
        if let Some(given) = spec.keys().find(meant) {
            let reason = format!("`{given}` may have been meant for {field}; {ALL_DENIED}");
            let remedy = format!("write it as rules of `{field}`, each with its action");
            self.report(Severity::Error, &joined("spec", given), reason, remedy);
            return Part::Bad;
        }
        self.list(spec.get(field), &joined("spec", field), ALL_DENIED, |reader, value, path| {
            // What a doubt costs depends on the action, so it is read first; without one the rule denies.
            let at = joined(path, "action");
            let action = match reader.part::<Action>(value.get("action"), &at, NO_PASS) {
                Part::Absent if !value.is_object() => Part::Bad,
                Part::Absent => {
                    let reason = format!("the rule has no action; {NO_PASS}");
                    reader.report(Severity::Error, &at, reason, "write Accept, Deny or Pass");
                    Part::Bad
                }
                given => given,
            };
            let effect = match action {
                Part::Whole(Action::Accept) => NO_ACCEPT,
                Part::Whole(Action::Deny) => DENIES_MORE,
                _ => NO_PASS,
            };
            TieredRule { action, rule: rule(reader, value, path, peers, effect) }
        })
    }

    /// A rule of a `ClusterNetworkPolicy`, less its action.
    fn cluster_rule(&mut self, value: &Value, path: &str, peers: &str, effect: &str) -> ClusterRuleObject {
        let mut rule = ClusterRuleObject {
            path: path.to_owned(),
            sound: !self.is_marred_itself(path),
            name: None,
            peers: Part::Bad,
            protocols: Part::Bad,
        };
        let Value::Object(given) = value else {
            rule.sound = false;
            let reason = format!("a rule is expected here; {effect}");
            self.report(Severity::Error, path, reason, format!("write its fields: action, {peers}"));
            return rule;
        };
        let known = fields::known(path, self.words);
        for field in given.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, path, field, effect);
            rule.sound = false;
        }
        let name = self.part::<String>(given.get("name"), &joined(path, "name"), effect);
        rule.sound &= name.is_sound();
        rule.name = name.value().map(|name| name.as_str().into());
        rule.peers = self.list(given.get(peers), &joined(path, peers), effect, |r, v, p| {
            r.item::<ClusterPeer>(v, p, effect)
        });
        rule.protocols = self.list(given.get("protocols"), &joined(path, "protocols"), effect, |r, v, p| {
            r.item::<ClusterProtocol>(v, p, effect)
        });
        rule
    }
}
