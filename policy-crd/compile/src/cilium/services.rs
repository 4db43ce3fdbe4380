//! `toServices`: Services by name or by labels, and whom they stand for.
//!
//! As Cilium has it: a Service with a selector is the pods it selects, one without is the addresses of its
//! `EndpointSlice`s, as far as they are outside the cluster. Whoever may write `EndpointSlice`s of a Service says what
//! such a rule allows. Knows nothing of rules.

use super::selector;
use crate::peers::PeerItem;
use crate::report::Report;
use crate::selector::{Labels, Selector};
use crate::slices;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sluice_crd::{CiliumService, Objects};
use sluice_policy::Prefix;
use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Most peers that one policy may take from Services, each address of a Service without selector being one: a short
/// list of names must not become a long one of addresses. A Service has at most some thousand endpoints.
const MAX_FROM_SERVICES: usize = 1 << 15;

/// Most items of `toServices` in one policy: each is compared with every Service of the cluster.
const MAX_ITEMS: usize = 256;

/// The label that every Namespace has.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Name and namespace, in this order: a name alone is asked for, too.
type Key = (Arc<str>, Arc<str>);

/// One Service.
#[derive(PartialEq)]
struct Entry {
    labels: Labels,
    /// The pods it selects; `None`: its addresses stand in its slices.
    pods: Option<PeerItem>,
}

/// One address of a slice.
#[derive(PartialEq)]
struct Address {
    address: IpAddr,
    /// Traffic is sent there.
    serving: bool,
}

/// The addresses of a Service without selector.
#[derive(Default, PartialEq)]
struct Slices {
    addresses: Vec<Address>,
    /// Some endpoint is no address that the API server would take: a name, or the loopback of whoever reads it.
    unknown: bool,
}

/// The Services of a cluster.
pub(crate) struct Services<'a> {
    objects: &'a Objects,
    /// Read once, when the first policy asks: most clusters have many Services and no policy that names one.
    read: OnceCell<Read>,
}

/// The Services, as policies read them.
#[derive(PartialEq)]
pub(super) struct Read {
    entries: BTreeMap<Key, Entry>,
    slices: BTreeMap<Key, Slices>,
}

impl<'a> Services<'a> {
    pub(crate) const fn new(objects: &'a Objects) -> Self {
        Self { objects, read: OnceCell::new() }
    }

    /// What was read of them, if a policy has asked.
    pub(super) fn into_read(self) -> Option<Read> {
        self.read.into_inner()
    }

    pub(super) fn read(&self) -> &Read {
        self.read.get_or_init(|| {
            let services = self.objects.services.iter();
            let entries: BTreeMap<Key, Entry> =
                services.filter_map(|service| entry(&service.object)).collect();
            let mut slices: BTreeMap<Key, Slices> = BTreeMap::new();
            for slice in &self.objects.endpoint_slices {
                let Some(key) = service_of(&slice.object) else { continue };
                if entries.get(&key).is_some_and(|entry| entry.pods.is_none()) {
                    slices.entry(key).or_default().add(&slice.object);
                }
            }
            Read { entries, slices }
        })
    }
}

fn entry(service: &Service) -> Option<(Key, Entry)> {
    let meta = &service.metadata;
    let name: Arc<str> = meta.name.as_deref()?.into();
    let namespace: Arc<str> = meta.namespace.as_deref().unwrap_or("default").into();
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let of = |labels: BTreeMap<String, String>| {
        let selector = LabelSelector { match_labels: Some(labels), match_expressions: None };
        Selector::new(&selector).unwrap_or_else(|_| selector::nobody())
    };
    let pods = selector.filter(|labels| !labels.is_empty()).map(|labels| {
        let home = BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.to_string())]);
        PeerItem::Elsewhere { namespaces: of(home), pods: of(labels.clone()) }
    });
    let labels = meta.labels.clone().unwrap_or_default();
    Some(((name, namespace), Entry { labels, pods }))
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let (namespace, name) = slices::service_of(slice)?;
    Some((name.into(), namespace.into()))
}

impl Slices {
    fn add(&mut self, slice: &EndpointSlice) {
        for endpoint in slice.endpoints.iter() {
            for text in &endpoint.addresses {
                match slices::address(slice, text) {
                    Some(address) => self.addresses.push(Address { address, serving: is_serving(endpoint) }),
                    None => self.unknown = true,
                }
            }
        }
    }
}

/// Whether Services send traffic there: ready, or still serving while it ends.
fn is_serving(endpoint: &Endpoint) -> bool {
    let Some(conditions) = &endpoint.conditions else { return true };
    conditions.ready.unwrap_or(true) || conditions.serving.unwrap_or(false)
}

/// The Services as one policy sees them.
pub(super) struct View<'a> {
    services: &'a Services<'a>,
    /// Items asked so far.
    asked: Cell<usize>,
    /// Peers taken from them so far.
    taken: Cell<usize>,
}

impl<'a> View<'a> {
    pub(super) fn new(services: &'a Services<'a>) -> Self {
        Self { services, asked: Cell::new(0), taken: Cell::new(0) }
    }

    /// One item of `toServices`. `None`: in doubt, and told.
    pub(super) fn item(
        &self,
        given: &CiliumService,
        own: Option<&str>,
        deny: bool,
        path: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<PeerItem>> {
        self.asked.set(self.asked.get() + 1);
        if self.asked.get() > MAX_ITEMS {
            let reason = format!("more than {MAX_ITEMS} items of toServices in one policy");
            report.error(path, reason, "write several policies, or select Services by their labels");
            return None;
        }
        let (found, path) = match (&given.k8s_service_selector, &given.k8s_service) {
            (Some(selected), None) => {
                let path = format!("{path}.k8sServiceSelector");
                let namespace = selected.namespace.as_deref();
                let selector = selector::service(&selected.selector, &format!("{path}.selector"), report)?;
                let found = self.found(namespace, |_, entry| selector.matches(&entry.labels));
                if found.is_empty() {
                    report.warn(&path, "no Service has these labels: the item names nobody", "label one so");
                }
                (found, path)
            }
            (None, Some(named)) => {
                let path = format!("{path}.k8sService");
                let found = self.named(
                    named.service_name.as_deref(),
                    named.namespace.as_deref(),
                    own,
                    &path,
                    report,
                )?;
                if found.is_empty() && deny {
                    // What it would have stood for nobody knows.
                    report.error(&path, "there is no such Service", "write or correct it");
                    return None;
                }
                if found.is_empty() {
                    report.warn(
                        &path,
                        "there is no such Service: the item names nobody",
                        "write or correct it",
                    );
                }
                (found, path)
            }
            _ => {
                report.error(path, "an item is a k8sService or a k8sServiceSelector", "write one of them");
                return None;
            }
        };
        self.peers(&found, deny, &path, report)
    }

    /// The Services of a namespace, or of any.
    fn found(&self, namespace: Option<&str>, test: impl Fn(&Key, &Entry) -> bool) -> Vec<&'a Key> {
        let namespace = namespace.filter(|name| !name.is_empty());
        let here = |key: &Key| namespace.is_none_or(|name| name == &*key.1);
        let entries =
            self.services.read().entries.iter().filter(|(key, entry)| here(key) && test(key, entry));
        entries.map(|(key, _)| key).collect()
    }

    fn named(
        &self,
        name: Option<&str>,
        namespace: Option<&str>,
        own: Option<&str>,
        path: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<&'a Key>> {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            report.error(path, "the Service has no name", "write serviceName");
            return None;
        };
        let found = self.found(namespace, |key, _| *key.0 == *name);
        if namespace.is_none_or(str::is_empty)
            && let Some(elsewhere) = found.iter().find(|key| own != Some(&*key.1))
        {
            let reason =
                format!("without a namespace it is the Service of every one, here of {}", elsewhere.1);
            report.warn(path, reason, "write namespace");
        }
        Some(found)
    }

    fn peers(
        &self,
        found: &[&Key],
        deny: bool,
        path: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<PeerItem>> {
        let mut out = BTreeMap::new();
        let mut addresses = BTreeSet::new();
        let mut unknown = false;
        for key in found {
            match self.services.read().entries.get(*key).and_then(|entry| entry.pods.as_ref()) {
                Some(pods) => {
                    out.insert(*key, pods.clone());
                }
                None => {
                    let Some(slices) = self.services.read().slices.get(*key) else { continue };
                    unknown |= slices.unknown;
                    let served = slices.addresses.iter().filter(|address| deny || address.serving);
                    addresses.extend(served.map(|address| address.address));
                }
            }
        }
        if unknown {
            let reason = "an endpoint of the Service is no address of another host";
            report.error(path, reason, "correct its EndpointSlices");
            return None;
        }
        let taken = self.taken.get().saturating_add(out.len() + addresses.len());
        if taken > MAX_FROM_SERVICES {
            let reason = format!("Services come to more than {MAX_FROM_SERVICES} peers");
            report.error(path, reason, "write several policies, or fewer Services");
            return None;
        }
        self.taken.set(taken);
        let outside = |address: IpAddr| {
            let cidr = Prefix::host(address);
            // A deny holds whoever has the address.
            match deny {
                true => PeerItem::Block { cidr, except: Vec::new() },
                false => PeerItem::Outside { cidr, except: Vec::new() },
            }
        };
        Some(out.into_values().chain(addresses.into_iter().map(outside)).collect())
    }
}
