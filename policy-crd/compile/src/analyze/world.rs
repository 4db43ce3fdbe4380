//! A cluster in which every selector of the policies selects somebody: the given pods, and made-up ones.
//!
//! That two rules overlap today, for the pods that happen to run, says little: tomorrow another pod has one label
//! without the other. So for every selector there is a pod with just the labels that it asks for, and one that has
//! every other label, too. What holds for all of them holds by the policies alone. Knows nothing of verdicts.

use super::views::{Namespaces, Pods, PolicyView, PortNumber};
use crate::cilium::selector::{self, Derived};
use crate::index::Index;
use crate::selector::{Labels, Selector};
use k8s_openapi::api::core::v1::{Container, ContainerPort, Namespace, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sluice_crd::{Objects, Source, Sourced};
use sluice_policy::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most pods that are made up: the rules of a cluster with more different selectors are not compared.
const MAX_PODS: usize = 6000;
/// Most of the given namespaces that a made-up pod of one selector lives in.
const MAX_NAMESPACES: usize = 2;
/// Most pods for the values of one selector.
const MAX_EXAMPLES: usize = 4;
/// The value of a label that no selector asks for, and the beginning of made-up names.
const MADE_UP: &str = "made-up";
/// The label that the API server puts on every namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Where the numbers of made-up ports begin: of the dynamic ones (RFC 6335 §6), which policies seldom name.
const FIRST_PORT: u16 = 60_000;

/// Where a cluster's name server usually is, and its label.
pub(super) const NAME_SERVER: (&str, (&str, &str)) = ("kube-system", ("k8s-app", "kube-dns"));

/// Whether a pod of this name is made up.
pub(super) fn is_made_up(pod: &str) -> bool {
    pod.strip_prefix('-').is_some_and(|rest| rest.starts_with(MADE_UP))
}

/// The objects with somebody for every selector; `None`: there are too many.
pub(super) fn inhabited(objects: &Objects, policies: &[PolicyView<'_>], index: &Index) -> Option<Objects> {
    let mut maker = Maker {
        index,
        keys: BTreeSet::new(),
        ports: ports(policies, index),
        namespaces: BTreeMap::new(),
        pods: BTreeSet::new(),
    };
    let meant = || {
        let peers = |policy: &'_ PolicyView<'_>| {
            let pods = policy.rules.iter().flat_map(|rule| &rule.peers).filter_map(|peer| peer.pods.as_ref());
            policy.subject.iter().chain(pods).cloned().collect::<Vec<_>>()
        };
        policies.iter().flat_map(peers)
    };
    maker.keys = meant().flat_map(|pods| pods.pods.keys().cloned().collect::<Vec<_>>()).collect();
    for pods in meant() {
        maker.inhabit(&pods);
        if maker.pods.len() > MAX_PODS {
            return None;
        }
    }
    // Somebody answers for names in every cluster.
    let (namespace, labels) = NAME_SERVER;
    let labels = Labels::from([labels].map(|(key, value)| (key.to_owned(), value.to_owned())));
    maker.pods.insert(Made { namespace: namespace.to_owned(), service_account: None, labels });
    let mut out = objects.clone();
    let source = Source::of_object("");
    for (labels, name) in &maker.namespaces {
        let metadata =
            ObjectMeta { name: Some(name.clone()), labels: Some(labels.clone()), ..ObjectMeta::default() };
        let object = Arc::new(Namespace { metadata, ..Namespace::default() });
        out.namespaces.push(Sourced { object, source: source.clone() });
    }
    for (number, made) in maker.pods.iter().enumerate() {
        let object = Arc::new(made.pod(number, &maker.ports));
        out.pods.push(Sourced { object, source: source.clone() });
    }
    Some(out)
}

/// The number of every port name: the one that the given pods agree on, else one of its own.
fn ports(policies: &[PolicyView<'_>], index: &Index) -> Vec<(Arc<str>, Protocol, u16)> {
    let mut wanted: BTreeSet<(Arc<str>, Protocol)> = BTreeSet::new();
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    for port in policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.ports) {
        match (&port.number, port.protocol) {
            (PortNumber::Named(name), Protocol::Other) => {
                let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
                wanted.extend(all.map(|protocol| (name.clone(), protocol)));
            }
            (PortNumber::Named(name), protocol) => {
                wanted.insert((name.clone(), protocol));
            }
            (PortNumber::Range(first, last), _) => taken.extend([*first, *last]),
            (PortNumber::Any, _) => {}
        }
    }
    let mut free = (FIRST_PORT..u16::MAX).filter(|number| !taken.contains(number));
    let number = |(name, protocol): (Arc<str>, Protocol)| {
        let given = index.pods.iter().flat_map(|pod| &pod.ports);
        let numbers: BTreeSet<u16> = given
            .filter(|port| port.name == name && port.protocol == protocol)
            .map(|port| port.number)
            .collect();
        let agreed = numbers.first().copied().filter(|_| numbers.len() == 1);
        Some((name, protocol, agreed.or_else(|| free.next())?))
    };
    wanted.into_iter().filter_map(number).collect()
}

/// Makes up pods.
struct Maker<'i> {
    index: &'i Index,
    /// Every key that some selector reads.
    keys: BTreeSet<Arc<str>>,
    ports: Vec<(Arc<str>, Protocol, u16)>,
    /// Made-up namespaces, by their labels.
    namespaces: BTreeMap<Labels, String>,
    pods: BTreeSet<Made>,
}

/// One made-up pod.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Made {
    namespace: String,
    service_account: Option<String>,
    labels: Labels,
}

impl Maker<'_> {
    /// Makes pods that are meant.
    fn inhabit(&mut self, meant: &Pods) {
        for labels in meant.pods.examples(MAX_EXAMPLES) {
            let mut full = labels.clone();
            for key in &self.keys {
                full.entry(key.to_string()).or_insert_with(|| MADE_UP.to_owned());
            }
            let full = Some(full).filter(|full| meant.pods.matches(full) && *full != labels);
            for labels in std::iter::once(labels).chain(full) {
                self.make(meant, &labels);
            }
        }
    }

    fn make(&mut self, meant: &Pods, labels: &Labels) {
        let mut made = Made {
            namespace: String::new(),
            service_account: meant.service_account.as_ref().map(|(_, name)| name.to_string()),
            labels: Labels::new(),
        };
        let (mut named, mut of_namespace) = (None, Labels::new());
        // What no pod can have, as Cilium's reserved labels, makes no pod.
        let own = |key: &str| !key.is_empty() && !key.contains(':');
        for (key, value) in labels {
            match selector::derived(key) {
                None if own(key) => {
                    made.labels.insert(key.clone(), value.clone());
                }
                Some(Derived::Own(key)) if own(key) => {
                    made.labels.insert(key.to_owned(), value.clone());
                }
                None | Some(Derived::Own(_)) => return,
                // A value that nobody asked for is not that of a namespace.
                Some(Derived::Namespace) if value != MADE_UP => named = Some(value.clone()),
                Some(Derived::ServiceAccount) if value != MADE_UP => {
                    made.service_account = Some(value.clone());
                }
                Some(Derived::NamespaceLabel(key)) if value != MADE_UP => {
                    of_namespace.insert(key.to_owned(), value.clone());
                }
                Some(_) => {}
            }
        }
        let namespaces = match (&meant.service_account, named, &meant.namespaces) {
            (Some((namespace, _)), ..) => vec![namespace.to_string()],
            (None, Some(name), _) => vec![name],
            (None, None, Namespaces::Named(name)) => vec![name.to_string()],
            (None, None, Namespaces::Matching(_, _)) if !of_namespace.is_empty() => {
                vec![self.namespace(of_namespace)]
            }
            (None, None, Namespaces::Matching(_, selector)) => self.namespaces_of(selector),
        };
        let Made { service_account, labels, .. } = made;
        for namespace in namespaces {
            let (service_account, labels) = (service_account.clone(), labels.clone());
            self.pods.insert(Made { namespace, service_account, labels });
        }
    }

    /// Some of the given namespaces that are meant, and one with just the labels that are asked for.
    fn namespaces_of(&mut self, selector: &Selector) -> Vec<String> {
        let given = self.index.namespaces.iter().filter(|(_, entry)| selector.matches(&entry.labels));
        let mut out: Vec<String> = given.map(|(name, _)| name.to_string()).take(MAX_NAMESPACES).collect();
        let known = selector.wanted().any(|(key, _)| key == NAME_LABEL) && !out.is_empty();
        if let (false, Some(labels)) = (known, selector.examples(1).pop()) {
            out.push(self.namespace(labels));
        }
        out
    }

    /// The made-up namespace with these labels.
    fn namespace(&mut self, labels: Labels) -> String {
        if let Some(name) = labels.get(NAME_LABEL) {
            return match self.index.namespaces.contains_key(name.as_str()) {
                true => name.clone(),
                false => self.namespaces.entry(labels.clone()).or_insert(name.clone()).clone(),
            };
        }
        let number = self.namespaces.len();
        self.namespaces.entry(labels).or_insert_with(|| format!("{MADE_UP}-{number}")).clone()
    }
}

impl Made {
    fn pod(&self, number: usize, ports: &[(Arc<str>, Protocol, u16)]) -> Pod {
        let port = |(name, protocol, number): &(Arc<str>, Protocol, u16)| ContainerPort {
            name: Some(name.to_string()),
            protocol: Some(protocol.as_str().to_owned()),
            container_port: i32::from(*number),
            ..ContainerPort::default()
        };
        let container = Container {
            name: MADE_UP.to_owned(),
            ports: Some(ports.iter().map(port).collect()),
            ..Container::default()
        };
        Pod {
            metadata: ObjectMeta {
                // No name of an object begins so.
                name: Some(format!("-{MADE_UP}-{number}")),
                namespace: Some(self.namespace.clone()),
                labels: Some(self.labels.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![container],
                service_account_name: self.service_account.clone(),
                ..PodSpec::default()
            }),
            status: None,
        }
    }
}
