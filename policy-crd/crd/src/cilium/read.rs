//! Cilium's kinds, piece by piece, with a problem for everything that is not as it should be.
//!
//! Checks shape alone, as `read` does, whose pieces it is made of: that a field is known and of its type. What can be
//! honoured is said where it is lowered. Called by the loader.

use super::rule::{CiliumIcmpRule, CiliumL7Rules, CiliumPeers, CiliumPortRule, CiliumRule};
use super::{CiliumCidrGroupObject, CiliumKind, CiliumPolicyObject, CiliumSpec};
use crate::decode::joined;
use crate::fields::{self, Words};
use crate::policy::Part;
use crate::problem::Severity;
use crate::read::{DENIES_MORE, Reader};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Most `specs` of one object: each costs as much as a policy. Cilium's own manifests have up to four.
const MAX_SPECS: usize = 256;

const NO_GRANT: &str = "the rule grants nothing";
const OBJECT_CLOSED: &str = "the policy isolates what it selects and grants nothing";
const GROUP_OPEN: &str = "the group grants nothing, and is everything to a deny";

impl Reader<'_> {
    /// A policy of Cilium. `None` if it belongs to a namespace and names none.
    pub(crate) fn cilium(
        &mut self,
        value: &Map<String, Value>,
        kind: CiliumKind,
    ) -> Option<CiliumPolicyObject> {
        self.words = match kind {
            CiliumKind::Namespaced => Words::Cilium,
            CiliumKind::Clusterwide => Words::CiliumClusterwide,
        };
        let (namespace, name) = self.metadata(value, OBJECT_CLOSED);
        let mut sound = !name.is_empty();
        let namespace = match kind {
            CiliumKind::Namespaced => {
                if namespace.is_none() {
                    let reason = "the policy names no namespace; it is not in force";
                    self.report(Severity::Error, "metadata.namespace", reason, "write metadata.namespace");
                }
                namespace?
            }
            CiliumKind::Clusterwide => {
                sound &= self.has_no_namespace(value);
                "".into()
            }
        };
        for field in value.keys() {
            if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata" | "spec" | "specs" | "status") {
                self.unknown(Severity::Error, "", field, OBJECT_CLOSED);
                sound = false;
            }
        }
        let specs = self.specs(value, &mut sound);
        let source = self.source().clone();
        let clean = sound && !self.has_error();
        Some(CiliumPolicyObject { kind, namespace, name, source, sound, clean, specs })
    }

    /// Its author took it for narrower than it is.
    fn has_no_namespace(&mut self, value: &Map<String, Value>) -> bool {
        let given = value.get("metadata").and_then(|metadata| metadata.get("namespace"));
        if given.is_none_or(|given| given.is_null() || given == "") {
            return true;
        }
        let reason = format!("the kind belongs to no namespace; {OBJECT_CLOSED}");
        let remedy = "remove it, and select by k8s:io.kubernetes.pod.namespace";
        self.report(Severity::Error, "metadata.namespace", reason, remedy);
        false
    }

    fn specs(&mut self, value: &Map<String, Value>, sound: &mut bool) -> Vec<CiliumSpec> {
        let mut out = Vec::new();
        if let Some(spec) = value.get("spec").filter(|spec| !spec.is_null()) {
            out.push(self.cilium_spec(spec, "spec"));
        }
        match value.get("specs") {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                if items.len() > MAX_SPECS {
                    let reason = format!("more than {MAX_SPECS} specs; {OBJECT_CLOSED}");
                    self.report(Severity::Error, "specs", reason, "write several policies");
                    *sound = false;
                }
                for (index, item) in items.iter().take(MAX_SPECS).enumerate() {
                    let path = format!("specs[{index}]");
                    out.push(self.cilium_spec(item, &path));
                }
                *sound &= !self.is_marred_itself("specs");
            }
            Some(_) => {
                let reason = "a list is expected here; the policy closes everything it could select";
                self.report(Severity::Error, "specs", reason, "write a list, each item after a `-`");
                out.push(unreadable("specs"));
            }
        }
        if out.is_empty() {
            let reason = "there is no spec; the policy closes everything it could select";
            self.report(Severity::Error, "spec", reason, "write spec.endpointSelector and the rules");
            out.push(unreadable("spec"));
        }
        out
    }

    fn cilium_spec(&mut self, value: &Value, path: &str) -> CiliumSpec {
        let Value::Object(given) = value else {
            let reason = "fields are expected here; the policy closes everything it could select";
            self.report(Severity::Error, path, reason, "write endpointSelector and the rules");
            return unreadable(path);
        };
        let mut sound = !self.is_marred_itself(path);
        let known = fields::known(path, self.words);
        for field in given.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, path, field, OBJECT_CLOSED);
            sound = false;
        }
        self.tell_of_empty(given, path);
        let at = |field: &str| format!("{path}.{field}");
        let closed = "the policy closes everything it could select";
        let endpoint_selector = self.part(given.get("endpointSelector"), &at("endpointSelector"), closed);
        let node_selector = self.part(given.get("nodeSelector"), &at("nodeSelector"), OBJECT_CLOSED);
        let isolates = "the policy isolates both directions";
        let enable_default_deny =
            self.part(given.get("enableDefaultDeny"), &at("enableDefaultDeny"), isolates);
        CiliumSpec {
            path: path.to_owned(),
            sound,
            endpoint_selector,
            node_selector,
            enable_default_deny,
            ingress: self.section(given, path, "ingress", false),
            egress: self.section(given, path, "egress", false),
            ingress_deny: self.section(given, path, "ingressDeny", true),
            egress_deny: self.section(given, path, "egressDeny", true),
        }
    }

    fn section(
        &mut self,
        given: &Map<String, Value>,
        path: &str,
        field: &str,
        deny: bool,
    ) -> Part<Vec<CiliumRule>> {
        let known = fields::known(path, self.words);
        let misspelt = |other: &&String| {
            !known.contains(&other.as_str()) && fields::nearest(other, known) == Some(field)
        };
        if deny
            && given.get(field).is_none()
            && let Some(other) = given.keys().find(misspelt)
        {
            // A misspelt deny still was one: what it would have denied nobody knows, so everything is.
            let reason = format!("`{other}` may have been meant; everything is denied here");
            self.report(Severity::Error, &format!("{path}.{other}"), reason, format!("write `{field}`"));
            return Part::Bad;
        }
        let whole = if deny { "everything is denied here" } else { "nothing is granted here" };
        let at = format!("{path}.{field}");
        let side = if field.starts_with("ingress") { "from" } else { "to" };
        self.list(given.get(field), &at, whole, |reader, value, path| {
            reader.cilium_rule(value, path, side, deny)
        })
    }

    fn cilium_rule(&mut self, value: &Value, path: &str, side: &str, deny: bool) -> CiliumRule {
        let effect = if deny { DENIES_MORE } else { NO_GRANT };
        let mut rule = CiliumRule {
            path: path.to_owned(),
            sound: !self.is_marred_itself(path),
            peers: CiliumPeers::default(),
            to_ports: Part::Absent,
            icmps: Part::Absent,
            authentication: Part::Absent,
        };
        let Value::Object(given) = value else {
            rule.sound = false;
            let reason = format!("a rule is expected here; {effect}");
            self.report(Severity::Error, path, reason, format!("write its fields: {side}Endpoints, toPorts"));
            return rule;
        };
        let known = fields::known(path, self.words);
        for field in given.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, path, field, effect);
            rule.sound = false;
        }
        self.tell_of_empty(given, path);
        rule.peers = CiliumPeers {
            endpoints: self.items(given, path, &format!("{side}Endpoints"), effect),
            requires: self.items(given, path, &format!("{side}Requires"), effect),
            cidr: self.items(given, path, &format!("{side}CIDR"), effect),
            cidr_set: self.items(given, path, &format!("{side}CIDRSet"), effect),
            entities: self.items(given, path, &format!("{side}Entities"), effect),
            nodes: self.items(given, path, &format!("{side}Nodes"), effect),
            groups: self.items(given, path, &format!("{side}Groups"), effect),
            services: self.items_of(side == "to", given, path, "toServices", effect),
            fqdns: self.items_of(side == "to", given, path, "toFQDNs", effect),
        };
        let at = format!("{path}.toPorts");
        rule.to_ports = self.list(given.get("toPorts"), &at, effect, |reader, value, path| {
            reader.port_rule(value, path, deny, effect)
        });
        rule.icmps = self.items::<CiliumIcmpRule>(given, path, "icmps", effect);
        rule.authentication =
            self.part(given.get("authentication"), &format!("{path}.authentication"), effect);
        rule
    }

    fn port_rule(&mut self, value: &Value, path: &str, deny: bool, effect: &str) -> CiliumPortRule {
        let mut rule = CiliumPortRule {
            path: path.to_owned(),
            sound: !self.is_marred_itself(path),
            ports: Part::Absent,
            rules: Part::Absent,
            server_names: Part::Absent,
            terminating_tls: Part::Absent,
            originating_tls: Part::Absent,
            listener: Part::Absent,
        };
        let Value::Object(given) = value else {
            rule.sound = false;
            let reason = format!("ports are expected here; {effect}");
            self.report(Severity::Error, path, reason, "write its fields: ports, rules");
            return rule;
        };
        // A deny of Cilium has no conditions: what is said here beside the ports does not limit it.
        let known = if deny { &["ports"] } else { fields::known(path, self.words) };
        for field in given.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, path, field, effect);
            rule.sound = false;
        }
        self.tell_of_empty(given, path);
        rule.ports = self.items(given, path, "ports", effect);
        if deny {
            return rule;
        }
        rule.server_names = self.items(given, path, "serverNames", effect);
        rule.terminating_tls =
            self.part(given.get("terminatingTLS"), &joined(path, "terminatingTLS"), effect);
        rule.originating_tls =
            self.part(given.get("originatingTLS"), &joined(path, "originatingTLS"), effect);
        rule.listener = self.part(given.get("listener"), &joined(path, "listener"), effect);
        rule.rules = self.l7_rules(given.get("rules"), &joined(path, "rules"), effect);
        rule
    }

    fn l7_rules(&mut self, value: Option<&Value>, path: &str, effect: &str) -> Part<CiliumL7Rules> {
        let given = match value {
            None | Some(Value::Null) if self.is_marred(path) => return Part::Bad,
            None | Some(Value::Null) => return Part::Absent,
            Some(Value::Object(given)) => given,
            Some(_) => {
                let reason = format!("http is expected here; {effect}");
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
        self.tell_of_empty(given, path);
        let rules = CiliumL7Rules {
            http: self.items(given, path, "http", effect),
            dns: self.items(given, path, "dns", effect),
            kafka: self.items(given, path, "kafka", effect),
            l7proto: self.part(given.get("l7proto"), &joined(path, "l7proto"), effect),
            l7: self.items(given, path, "l7", effect),
        };
        if sound { Part::Whole(rules) } else { Part::Flawed(rules) }
    }

    /// The list in one field, each item a part of its own.
    fn items<T: DeserializeOwned>(
        &mut self,
        given: &Map<String, Value>,
        path: &str,
        field: &str,
        effect: &str,
    ) -> Part<Vec<Part<T>>> {
        let at = joined(path, field);
        self.list(given.get(field), &at, effect, |reader, value, path| reader.item(value, path, effect))
    }

    /// [`Self::items`] of a field that only one side has.
    fn items_of<T: DeserializeOwned>(
        &mut self,
        here: bool,
        given: &Map<String, Value>,
        path: &str,
        field: &str,
        effect: &str,
    ) -> Part<Vec<Part<T>>> {
        if here { self.items(given, path, field, effect) } else { Part::Absent }
    }

    /// To Cilium a field without a value is not there: `fromEndpoints:` alone is everybody.
    fn tell_of_empty(&mut self, given: &Map<String, Value>, path: &str) {
        for (field, _) in given.iter().filter(|(_, value)| value.is_null()) {
            let reason = format!("`{field}` has no value and counts as not written");
            let remedy = "remove it, or write []: a list with nothing in it means nobody";
            self.report(Severity::Warning, &joined(path, field), reason, remedy);
        }
    }

    /// A group of CIDRs. One without a name stays, in doubt: a selector may mean it.
    pub(crate) fn cilium_group(&mut self, value: &Map<String, Value>) -> CiliumCidrGroupObject {
        self.words = Words::CiliumGroup;
        let (_, name) = self.metadata(value, GROUP_OPEN);
        let mut sound = !name.is_empty();
        for field in value.keys() {
            if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata" | "spec" | "status") {
                self.unknown(Severity::Error, "", field, GROUP_OPEN);
                sound = false;
            }
        }
        let labels = value.get("metadata").and_then(|metadata| metadata.get("labels"));
        let labels = match self.part(labels, "metadata.labels", "any selector may mean the group") {
            Part::Absent => Some(Default::default()),
            Part::Whole(labels) => Some(labels),
            Part::Bad | Part::Flawed(_) => None,
        };
        let mut external_cidrs = Part::Bad;
        if let Some(Value::Object(spec)) = value.get("spec") {
            let known = fields::known("spec", self.words);
            for field in spec.keys().filter(|field| !known.contains(&field.as_str())) {
                self.unknown(Severity::Error, "spec", field, GROUP_OPEN);
                sound = false;
            }
            external_cidrs = self.items(spec, "spec", "externalCIDRs", GROUP_OPEN);
        } else {
            let reason = format!("there is no spec; {GROUP_OPEN}");
            self.report(Severity::Error, "spec", reason, "write spec.externalCIDRs");
        }
        sound &= !self.is_marred_itself("spec");
        CiliumCidrGroupObject { name, labels, source: self.source().clone(), sound, external_cidrs }
    }
}

/// A spec of which nothing is known: nobody knows what was to be denied, nor to whom.
fn unreadable(path: &str) -> CiliumSpec {
    CiliumSpec {
        path: path.to_owned(),
        sound: false,
        endpoint_selector: Part::Bad,
        node_selector: Part::Absent,
        enable_default_deny: Part::Bad,
        ingress: Part::Bad,
        egress: Part::Bad,
        ingress_deny: Part::Bad,
        egress_deny: Part::Bad,
    }
}
