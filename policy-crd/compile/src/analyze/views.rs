//! Every policy in one form, with the path of everything in it: what the checks of a single rule read.
//!
//! Made from the objects as read, for lowering keeps no paths. What is in doubt is left out: its problem is told
//! already. Knows nothing of pods, and nothing of what is wrong.

mod cilium;
mod tiered;

use crate::selector::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_crd::{
    Entity, GrpcRule, HeaderMatchType, HostMatchType, HttpRule, Mode, Objects, Part, Peer, PolicyKind,
    PolicyObject, Port, RuleObject, Rules, Source, StringMatchType, Tier,
};
use sluice_policy::{Direction, Kind, Origin, Prefix, Protocol};
use std::collections::HashMap;
use std::sync::Arc;

/// One policy; one for each of `specs` of Cilium's.
pub(super) struct PolicyView<'o> {
    pub(super) source: &'o Source,
    pub(super) origin: Origin,
    pub(super) mode: Mode,
    /// Of a policy of a tier.
    pub(super) tier: Option<(Tier, i32)>,
    /// Whom it selects; `None`: in doubt.
    pub(super) subject: Option<Pods>,
    pub(super) rules: Vec<RuleView<'o>>,
}

/// Pods, by labels.
#[derive(Clone)]
pub(super) struct Pods {
    /// The selector of pods, or of namespaces where that is all there is.
    pub(super) path: String,
    pub(super) namespaces: Namespaces,
    pub(super) pods: Selector,
    /// The service account that they run as, too.
    pub(super) service_account: Option<(Arc<str>, Arc<str>)>,
}

/// The namespaces of pods.
#[derive(Clone)]
pub(super) enum Namespaces {
    /// This one.
    Named(Arc<str>),
    /// Those with these labels, and where the selector stands; every one where nothing is asked of them.
    Matching(String, Selector),
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
    Pass,
}

/// One rule.
pub(super) struct RuleView<'o> {
    /// Its place, as `spec.ingress[0]`.
    pub(super) path: String,
    /// The name it gives itself.
    pub(super) name: Option<Arc<str>>,
    pub(super) direction: Direction,
    pub(super) effect: Effect,
    /// Nobody is named, which is everybody.
    pub(super) everybody: bool,
    pub(super) peers: Vec<PeerView>,
    pub(super) ports: Vec<PortView>,
    /// It has conditions on what is said.
    pub(super) conditional: bool,
    pub(super) http: Vec<HttpView<'o>>,
    pub(super) grpc: Vec<GrpcView<'o>>,
    /// The place of its server names.
    pub(super) server_names: Option<String>,
}

/// One peer of a rule.
pub(super) struct PeerView {
    pub(super) pods: Option<Pods>,
    /// Addresses, and where they are written.
    pub(super) cidr: Option<(String, Prefix)>,
    /// Everything outside the cluster, or everything at all.
    pub(super) world: bool,
}

/// One port of a rule.
pub(super) struct PortView {
    pub(super) path: String,
    pub(super) number: PortNumber,
    pub(super) protocol: Protocol,
}

/// Which port.
pub(super) enum PortNumber {
    Any,
    Range(u16, u16),
    Named(Arc<str>),
}

/// One alternative of `http`.
pub(super) struct HttpView<'o> {
    pub(super) methods: Vec<(String, &'o str)>,
    /// The place of `methods`.
    pub(super) methods_path: String,
    pub(super) exact_path: Option<(String, &'o str)>,
    pub(super) regexes: Vec<RegexView<'o>>,
    /// The place of its hosts.
    pub(super) hosts: Option<String>,
}

/// What a regular expression is matched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegexOf {
    /// A path; of Cilium's with the query.
    Path,
    Host,
    /// A method, a header or a query parameter.
    Other,
}

/// One regular expression.
pub(super) struct RegexView<'o> {
    pub(super) path: String,
    pub(super) of: RegexOf,
    pub(super) text: &'o str,
}

/// One alternative of `grpc`.
pub(super) struct GrpcView<'o> {
    pub(super) path: String,
    pub(super) service: &'o str,
    pub(super) methods: Vec<(String, &'o str)>,
}

/// Every policy.
pub(super) fn all(objects: &Objects) -> Vec<PolicyView<'_>> {
    let mut out: Vec<PolicyView<'_>> = objects.policies.iter().map(policy).collect();
    out.extend(objects.cluster_network_policies.iter().map(tiered::cluster_network));
    out.extend(objects.cluster_l7_policies.iter().map(tiered::cluster_l7));
    out.extend(objects.cilium.iter().flat_map(cilium::policy));
    out
}

/// Where the rules of policies stand, by the names that verdicts have for them.
pub(super) struct Rulebook<'v> {
    policies: HashMap<&'v Origin, &'v Source>,
    named: HashMap<(&'v Origin, &'v str), &'v str>,
}

impl<'v> Rulebook<'v> {
    pub(super) fn new(policies: &'v [PolicyView<'v>]) -> Self {
        let mut book = Self { policies: HashMap::new(), named: HashMap::new() };
        for policy in policies {
            book.policies.entry(&policy.origin).or_insert(policy.source);
            for rule in &policy.rules {
                let Some(name) = &rule.name else { continue };
                book.named.entry((&policy.origin, name)).or_insert(&rule.path);
            }
        }
        book
    }

    pub(super) fn source(&self, origin: &Origin) -> Option<&'v Source> {
        self.policies.get(origin).copied()
    }

    /// The path of a rule. One that has no name of its own is known by its place.
    pub(super) fn path(&self, origin: &Origin, rule: &str) -> String {
        match self.named.get(&(origin, rule)) {
            Some(path) => (*path).to_owned(),
            None if rule.starts_with("specs[") => rule.to_owned(),
            None => format!("spec.{rule}"),
        }
    }
}

fn policy(object: &PolicyObject) -> PolicyView<'_> {
    let kind = match object.kind {
        PolicyKind::NetworkPolicy => Kind::NetworkPolicy,
        PolicyKind::L7NetworkPolicy => Kind::L7NetworkPolicy,
    };
    let own = Namespaces::Named(object.namespace.clone());
    let path = "spec.podSelector";
    let everyone = || Pods {
        path: path.to_owned(),
        namespaces: own.clone(),
        pods: Selector::default(),
        service_account: None,
    };
    let subject = match &object.pod_selector {
        Part::Absent => Some(everyone()),
        Part::Whole(given) => pods(given, path, own.clone()),
        Part::Bad | Part::Flawed(_) => None,
    };
    let sections = [
        (&object.ingress, Direction::Ingress, Effect::Allow),
        (&object.egress, Direction::Egress, Effect::Allow),
        (&object.ingress_deny, Direction::Ingress, Effect::Deny),
        (&object.egress_deny, Direction::Egress, Effect::Deny),
    ];
    let rules = sections.into_iter().flat_map(|(section, direction, effect)| {
        let own = own.clone();
        let given = section.value().into_iter().flatten();
        given.map(move |given| rule(given, direction, effect, &own))
    });
    PolicyView {
        source: &object.source,
        origin: Origin { kind, namespace: object.namespace.clone(), name: object.name.clone() },
        mode: object.mode,
        tier: None,
        subject,
        rules: rules.collect(),
    }
}

fn pods(given: &LabelSelector, path: &str, namespaces: Namespaces) -> Option<Pods> {
    let pods = Selector::new(given).ok()?;
    Some(Pods { path: path.to_owned(), namespaces, pods, service_account: None })
}

fn rule<'o>(given: &'o RuleObject, direction: Direction, effect: Effect, own: &Namespaces) -> RuleView<'o> {
    let field = if direction == Direction::Ingress { "from" } else { "to" };
    let items = given.peers.value().into_iter().flatten().enumerate();
    let peers = items.filter_map(|(index, item)| Some((index, item.value()?)));
    let ports = given.ports.value().into_iter().flatten().enumerate();
    let path = &given.path;
    let rules = given.rules.value();
    let at = format!("{path}.rules");
    RuleView {
        path: path.clone(),
        name: given.name.clone(),
        direction,
        effect,
        everybody: is_empty(&given.peers),
        peers: peers.flat_map(|(index, item)| peer(item, &format!("{path}.{field}[{index}]"), own)).collect(),
        ports: ports
            .filter_map(|(index, item)| port(item.value()?, format!("{path}.ports[{index}]")))
            .collect(),
        conditional: !given.rules.is_absent(),
        http: rules.map(|rules| http(rules, &at)).unwrap_or_default(),
        grpc: rules.map(|rules| grpc(rules, &at)).unwrap_or_default(),
        server_names: rules.filter(|rules| !rules.tls.is_absent()).map(|_| format!("{at}.tls.serverNames")),
    }
}

fn is_empty<T>(part: &Part<Vec<T>>) -> bool {
    match part {
        Part::Absent => true,
        Part::Bad => false,
        Part::Flawed(items) | Part::Whole(items) => items.is_empty(),
    }
}

/// One item of `from` or `to`; several where it names several service accounts.
fn peer(given: &Peer, path: &str, own: &Namespaces) -> Vec<PeerView> {
    let mut out = PeerView { pods: None, cidr: None, world: false };
    if let Some(entities) = &given.entities {
        out.world = entities.contains(&Entity::World);
    }
    if let Some(block) = &given.ip_block {
        out.cidr = Prefix::parse(&block.cidr).ok().map(|cidr| (format!("{path}.ipBlock.cidr"), cidr));
    }
    let namespaces = match &given.namespace_selector {
        Some(selector) => {
            let Ok(selector) = Selector::new(selector) else { return vec![out] };
            Namespaces::Matching(format!("{path}.namespaceSelector"), selector)
        }
        None => own.clone(),
    };
    let named = |pods: Pods| PeerView { pods: Some(pods), cidr: None, world: false };
    let selected = match &given.pod_selector {
        Some(selector) => pods(selector, &format!("{path}.podSelector"), namespaces),
        None => {
            Some(Pods { path: path.to_owned(), namespaces, pods: Selector::default(), service_account: None })
        }
    };
    if let Some(accounts) = &given.service_accounts {
        let narrowed = given.pod_selector.is_some() || given.namespace_selector.is_some();
        return accounts
            .iter()
            .enumerate()
            .filter_map(|(index, account)| {
                let namespace = match (&account.namespace, own) {
                    (Some(namespace), _) => namespace.as_str().into(),
                    (None, Namespaces::Named(own)) => own.clone(),
                    (None, Namespaces::Matching(..)) => return None,
                };
                let at = format!("{path}.serviceAccounts[{index}]");
                let base = selected.clone()?;
                let namespaces =
                    if narrowed { base.namespaces } else { Namespaces::Named(Arc::clone(&namespace)) };
                let account = Some((namespace, account.name.as_str().into()));
                Some(named(Pods { path: at, namespaces, pods: base.pods, service_account: account }))
            })
            .collect();
    }
    if given.pod_selector.is_some() || given.namespace_selector.is_some() {
        out.pods = selected;
    }
    vec![out]
}

fn port(given: &Port, path: String) -> Option<PortView> {
    let protocol = Protocol::parse(given.protocol.as_deref().unwrap_or("TCP"))?;
    let number = match &given.port {
        None => PortNumber::Any,
        Some(IntOrString::String(name)) => PortNumber::Named(name.as_str().into()),
        Some(IntOrString::Int(first)) => {
            let last = given.end_port.unwrap_or(*first);
            PortNumber::Range(u16::try_from(*first).ok()?, u16::try_from(last).ok()?)
        }
    };
    Some(PortView { path, number, protocol })
}

fn http<'o>(rules: &'o Rules, at: &str) -> Vec<HttpView<'o>> {
    let items = rules.http.value().into_iter().flatten().enumerate();
    items.filter_map(|(index, item)| Some(http_item(item.value()?, &format!("{at}.http[{index}]")))).collect()
}

fn http_item<'o>(given: &'o HttpRule, path: &str) -> HttpView<'o> {
    let methods_path = format!("{path}.methods");
    let methods = given.methods.iter().flatten().enumerate();
    let mut regexes = Vec::new();
    let mut exact_path = None;
    if let Some(condition) = &given.path {
        let at = format!("{path}.path.value");
        match condition.kind {
            StringMatchType::Exact => exact_path = Some((at, condition.value.as_str())),
            StringMatchType::PathPrefix => {}
            StringMatchType::RegularExpression => {
                regexes.push(RegexView { path: at, of: RegexOf::Path, text: &condition.value });
            }
        }
    }
    for (index, host) in given.hosts.iter().flatten().enumerate() {
        if host.kind == HostMatchType::RegularExpression {
            let path = format!("{path}.hosts[{index}].value");
            regexes.push(RegexView { path, of: RegexOf::Host, text: &host.value });
        }
    }
    for (field, list) in [("headers", &given.headers), ("queryParams", &given.query_params)] {
        for (index, item) in list.iter().flatten().enumerate() {
            if let (HeaderMatchType::RegularExpression, Some(text)) = (item.kind, &item.value) {
                let path = format!("{path}.{field}[{index}].value");
                regexes.push(RegexView { path, of: RegexOf::Other, text });
            }
        }
    }
    HttpView {
        methods: methods.map(|(index, text)| (format!("{methods_path}[{index}]"), text.as_str())).collect(),
        methods_path,
        exact_path,
        regexes,
        hosts: given.hosts.is_some().then(|| format!("{path}.hosts")),
    }
}

fn grpc<'o>(rules: &'o Rules, at: &str) -> Vec<GrpcView<'o>> {
    let items = rules.grpc.value().into_iter().flatten().enumerate();
    items.filter_map(|(index, item)| Some(grpc_item(item.value()?, format!("{at}.grpc[{index}]")))).collect()
}

fn grpc_item(given: &GrpcRule, path: String) -> GrpcView<'_> {
    let methods = given.methods.iter().flatten().enumerate();
    GrpcView {
        methods: methods.map(|(index, text)| (format!("{path}.methods[{index}]"), text.as_str())).collect(),
        service: &given.service,
        path,
    }
}
