//! Value trees into objects, piece by piece, with a problem for everything that is not as it should be.
//!
//! Checks shape alone: fields, types, the words of closed lists. What a CIDR, a regular expression or a
//! selector means is checked where it is lowered. Called by the loader.

use crate::bounds;
use crate::decode::{Decoded, decode, essential, joined, misplaced_list, type_remedy};
use crate::fields::{self, Words};
use crate::l7::{DenyAction, DenyDetail, IsolationScope, Mode};
use crate::object::Source;
use crate::policy::{Part, PolicyKind, PolicyObject};
use crate::problem::{Category, Problem, Problems, Severity};
use crate::yaml::Flaw;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::sync::Arc;

pub(crate) const DENIES_MORE: &str = "the rule denies as if this did not limit it";
const OBJECT_CLOSED: &str = "the policy isolates what it selects and grants nothing";

/// Reads the pieces of one object.
pub(crate) struct Reader<'a> {
    source: &'a Source,
    flaws: &'a [Flaw],
    pub(crate) words: Words,
    problems: Problems,
    /// Places beyond the bounds of their schema, which nothing is read from.
    pub(crate) beyond: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Source, flaws: &'a [Flaw]) -> Self {
        Self { source, flaws, words: Words::NetworkPolicy, problems: Problems::default(), beyond: Vec::new() }
    }

    /// Whether peers, ports and what must be said are written in `L7NetworkPolicy`'s words.
    pub(crate) fn is_l7(&self) -> bool {
        matches!(self.words, Words::L7 | Words::ClusterL7)
    }

    /// Whether the kind belongs to a namespace.
    fn is_namespaced(&self) -> bool {
        matches!(self.words, Words::NetworkPolicy | Words::L7 | Words::Cilium)
    }

    /// The place of the object.
    pub(crate) fn source(&self) -> &Source {
        self.source
    }

    /// Whether anything was an error so far.
    pub(crate) fn has_error(&self) -> bool {
        self.problems.errors() > 0
    }

    /// The problems found.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_list(self.source)
    }

    pub(crate) fn report(
        &mut self,
        severity: Severity,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.report_of(Category::Shape, severity, path, reason, remedy);
    }

    fn report_of(
        &mut self,
        category: Category,
        severity: Severity,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.add(self.source.problem(severity, path, reason, remedy).of(category));
    }

    /// Whether the text itself was odd in, at or around this place.
    pub(crate) fn is_marred(&self, path: &str) -> bool {
        let full = format!("{}{path}", self.source.prefix);
        self.flaws.iter().any(|flaw| within(&full, &flaw.path) || within(&flaw.path, &full))
            || self.beyond.iter().any(|place| within(path, place) || within(place, path))
    }

    pub(crate) fn unknown(&mut self, severity: Severity, parent: &str, field: &str, effect: &str) {
        let remedy = fields::remedy(parent, field, self.words);
        let reason = format!("unknown field `{field}`; {effect}");
        self.report_of(Category::UnknownField, severity, &joined(parent, field), reason, remedy);
    }

    /// One part as a whole.
    pub(crate) fn part<T: DeserializeOwned>(
        &mut self,
        value: Option<&Value>,
        path: &str,
        effect: &str,
    ) -> Part<T> {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return if self.is_marred(path) { Part::Bad } else { Part::Absent };
        };
        if let Some(place) = misplaced_list(value, path) {
            let reason = format!("no list is expected here; {effect}");
            self.report(Severity::Error, &place, reason, "write fields, as `name: value`");
            return Part::Bad;
        }
        match decode(value) {
            Decoded::Failed { path: inner, reason } => {
                let remedy = type_remedy(&reason);
                self.report(Severity::Error, &joined(path, &inner), format!("{reason}; {effect}"), remedy);
                Part::Bad
            }
            Decoded::Read { value, unknown } => {
                for (parent, field) in &unknown {
                    self.unknown(Severity::Error, &joined(path, parent), field, effect);
                }
                if self.is_marred(path) {
                    Part::Bad
                } else if unknown.is_empty() {
                    Part::Whole(value)
                } else {
                    Part::Flawed(value)
                }
            }
        }
    }

    /// A list, each item a part of its own.
    pub(crate) fn list<T>(
        &mut self,
        value: Option<&Value>,
        path: &str,
        effect: &str,
        mut item: impl FnMut(&mut Self, &Value, &str) -> T,
    ) -> Part<Vec<T>> {
        match value {
            None | Some(Value::Null) if self.is_marred(path) => Part::Bad,
            None | Some(Value::Null) => Part::Absent,
            Some(Value::Array(items)) => {
                let read = items
                    .iter()
                    .enumerate()
                    .map(|(index, value)| item(self, value, &format!("{path}[{index}]")))
                    .collect();
                if self.is_marred_itself(path) { Part::Bad } else { Part::Whole(read) }
            }
            Some(_) => {
                let reason = format!("a list is expected here; {effect}");
                self.report(Severity::Error, path, reason, "write a list, each item after a `-`");
                Part::Bad
            }
        }
    }

    /// Whether this very place or one around it is odd, rather than something in it.
    pub(crate) fn is_marred_itself(&self, path: &str) -> bool {
        let full = format!("{}{path}", self.source.prefix);
        self.flaws.iter().any(|flaw| within(&flaw.path, &full))
            || self.beyond.iter().any(|place| within(place, path))
    }

    /// An object that is no policy. Where the whole cannot be read, the fields that matter may be: a pod must
    /// not lose its policies over an annotation. `None` if they cannot be read either.
    pub(crate) fn typed<T: DeserializeOwned>(&mut self, value: &Value) -> Option<T> {
        match decode(value) {
            Decoded::Failed { path, reason } => {
                let rest = match decode(&essential(value)) {
                    Decoded::Read { value, .. } => Some(value),
                    Decoded::Failed { .. } => None,
                };
                let effect =
                    if rest.is_some() { "the rest of the object holds" } else { "the object is left out" };
                let remedy = type_remedy(&reason);
                self.report(Severity::Error, &path, format!("{reason}; {effect}"), remedy);
                rest
            }
            Decoded::Read { value, unknown } => {
                for (parent, field) in unknown {
                    // A newer cluster's pods have fields that nobody here knows; names and labels matter.
                    let matters = parent.is_empty() || parent.starts_with("metadata");
                    let severity = if matters { Severity::Warning } else { Severity::Info };
                    self.unknown(severity, &parent, &field, "nothing reads it");
                }
                Some(value)
            }
        }
    }

    /// A policy. `None` if not even its namespace is known.
    pub(crate) fn policy(&mut self, value: &Map<String, Value>, kind: PolicyKind) -> Option<PolicyObject> {
        self.words = match kind {
            PolicyKind::NetworkPolicy => Words::NetworkPolicy,
            PolicyKind::L7NetworkPolicy => Words::L7,
        };
        if self.is_l7() {
            self.hold(&bounds::L7, value);
        }
        let (namespace, name) = self.names(value)?;
        let mut policy = PolicyObject {
            kind,
            namespace,
            sound: !name.is_empty(),
            clean: true,
            name,
            source: self.source.clone(),
            pod_selector: Part::Absent,
            policy_types: Part::Absent,
            mode: Mode::Enforce,
            deny_action: DenyAction::Drop,
            deny_detail: DenyDetail::None,
            isolation: Part::Absent,
            ingress: Part::Absent,
            egress: Part::Absent,
            ingress_deny: Part::Absent,
            egress_deny: Part::Absent,
        };
        for field in value.keys() {
            if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata" | "spec" | "status") {
                self.unknown(Severity::Error, "", field, OBJECT_CLOSED);
                policy.sound = false;
            }
        }
        match value.get("spec") {
            Some(Value::Object(spec)) => self.spec(spec, &mut policy),
            _ => {
                let reason = "there is no spec; the policy closes its whole namespace";
                self.report(Severity::Error, "spec", reason, "write spec.podSelector and the rules");
                policy.sound = false;
                policy.pod_selector = Part::Bad;
                policy.policy_types = Part::Bad;
                if self.is_l7() {
                    // Nobody knows what was to be denied.
                    (policy.ingress_deny, policy.egress_deny) = (Part::Bad, Part::Bad);
                    policy.isolation = Part::Bad;
                }
            }
        }
        policy.clean = policy.sound && !self.has_error();
        Some(policy)
    }

    fn names(&mut self, value: &Map<String, Value>) -> Option<(Arc<str>, Arc<str>)> {
        let (namespace, name) = self.metadata(value, OBJECT_CLOSED);
        if namespace.is_none() {
            let reason = "the policy names no namespace; it is not in force";
            self.report(Severity::Error, "metadata.namespace", reason, "write metadata.namespace");
        }
        Some((namespace?, name))
    }

    /// The namespace, if a proper one is given, and the name, empty if there is no proper one.
    pub(crate) fn metadata(
        &mut self,
        value: &Map<String, Value>,
        closed: &str,
    ) -> (Option<Arc<str>>, Arc<str>) {
        let metadata = value.get("metadata");
        if let Some(metadata) = metadata {
            match decode::<ObjectMeta>(metadata) {
                Decoded::Read { unknown, .. } => {
                    for (parent, field) in unknown {
                        let parent = joined("metadata", &parent);
                        self.unknown(Severity::Warning, &parent, &field, "nothing reads it");
                    }
                }
                Decoded::Failed { path, reason } => {
                    let remedy = type_remedy(&reason);
                    self.report(Severity::Error, &joined("metadata", &path), reason, remedy);
                }
            }
        }
        let text =
            |field: &str| metadata.and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let proper_namespace = is_name(namespace).then(|| namespace.into());
        if is_name(name) {
            return (proper_namespace, name.into());
        }
        // A policy that is in no namespace is not in force, and its name is nobody's concern.
        if proper_namespace.is_some() || !self.is_namespaced() {
            let reason = format!("the policy has no proper name; {closed}");
            let remedy = "write metadata.name: letters, digits, `-` and `.`";
            self.report(Severity::Error, "metadata.name", reason, remedy);
        }
        (proper_namespace, "".into())
    }

    fn spec(&mut self, spec: &Map<String, Value>, policy: &mut PolicyObject) {
        let known = fields::known("spec", self.words);
        for field in spec.keys().filter(|field| !known.contains(&field.as_str())) {
            self.unknown(Severity::Error, "spec", field, OBJECT_CLOSED);
            policy.sound = false;
        }
        if self.is_marred_itself("spec") {
            policy.sound = false;
        }
        let closed = "the policy isolates its whole namespace and grants nothing";
        policy.pod_selector = self.part(spec.get("podSelector"), "spec.podSelector", closed);
        let closed = "the policy isolates both directions";
        policy.policy_types = self.part(spec.get("policyTypes"), "spec.policyTypes", closed);
        policy.ingress = self.rules(spec.get("ingress"), "spec.ingress", "from", false);
        policy.egress = self.rules(spec.get("egress"), "spec.egress", "to", false);
        if !self.is_l7() {
            return;
        }
        policy.ingress_deny = self.denies(spec, "ingressDeny", "from");
        policy.egress_deny = self.denies(spec, "egressDeny", "to");
        (policy.mode, policy.deny_action, policy.deny_detail) = self.answers(|field| spec.get(field));
        let effect = "Direction holds, which isolates every port";
        policy.isolation = self.part::<IsolationScope>(spec.get("isolation"), "spec.isolation", effect);
    }

    /// How strictly the policy holds, and how what it refuses is answered.
    pub(crate) fn answers<'v>(
        &mut self,
        given: impl Fn(&str) -> Option<&'v Value>,
    ) -> (Mode, DenyAction, DenyDetail) {
        let mode = self.part::<Mode>(given("mode"), "spec.mode", "the policy enforces");
        let action = self.part::<DenyAction>(given("denyAction"), "spec.denyAction", "Drop holds");
        let detail = self.part::<DenyDetail>(given("denyDetail"), "spec.denyDetail", "None holds");
        let (mode, action, detail) = (mode.value(), action.value(), detail.value());
        (
            mode.copied().unwrap_or_default(),
            action.copied().unwrap_or_default(),
            detail.copied().unwrap_or_default(),
        )
    }
}

/// Whether one place is another or lies below it.
fn within(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Whether it can be the name of an object. It travels in verdicts, logs and answers, so nothing else may pass.
fn is_name(text: &str) -> bool {
    /// As the API server has it.
    const MAX_NAME: usize = 253;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(plain)
}
