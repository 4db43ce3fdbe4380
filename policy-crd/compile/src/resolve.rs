//! Which classes the peers of a rule are.
//!
//! Says them by their places in [`Classes`]. Knows nothing of rules, nor of the numbers of a snapshot.

use crate::classes::{Classes, Home, Key, Who};
use crate::index::Index;
use crate::peers::{PeerItem, Peers};
use crate::selector::Selector;
use sluice_policy::Protocol;
use std::collections::BTreeMap;
use std::ops::Range;

impl Classes {
    /// The classes that a rule's peers mean, sorted; `None` for every class.
    pub(crate) fn resolve(&self, peers: &Peers, home: Home<'_>, index: &Index) -> Option<Vec<usize>> {
        let Peers::Any(items) = peers else { return None };
        let mut out = Vec::new();
        for item in items {
            self.item(item, home, index, &mut out);
        }
        out.sort_unstable();
        out.dedup();
        Some(out)
    }

    /// The classes that one item of a rule's peers means.
    fn item(&self, item: &PeerItem, home: Home<'_>, index: &Index, out: &mut Vec<usize>) {
        match item {
            PeerItem::Own(pods) => self.selected(pods, self.of_namespace(home.namespace), out),
            PeerItem::Elsewhere { namespaces, pods } => self.elsewhere(namespaces, pods, index, out),
            PeerItem::ServiceAccounts(accounts) => {
                for (namespace, name) in accounts {
                    out.extend(self.of_account(namespace, name));
                }
            }
            PeerItem::Entities(entities) => {
                let keys = self.keys.iter().enumerate();
                out.extend(keys.filter(|(_, key)| key.is_any(entities, home)).map(|(place, _)| place));
            }
            PeerItem::Both(parts) => {
                let sets = parts.iter().map(|part| {
                    let mut set = Vec::new();
                    self.item(part, home, index, &mut set);
                    set.sort_unstable();
                    set
                });
                let both = sets.reduce(|mut all, next| {
                    all.retain(|place| next.binary_search(place).is_ok());
                    all
                });
                out.extend(both.unwrap_or_default());
            }
            PeerItem::Nodes(nodes) => {
                let hosts = index.hosts(nodes).filter_map(|host| self.by_cidr.get(&host));
                out.extend(hosts.flatten().copied());
            }
            PeerItem::Block { cidr, except } | PeerItem::Outside { cidr, except } => {
                let outside = matches!(item, PeerItem::Outside { .. });
                let inside = self.by_cidr.get(cidr).into_iter().flatten().copied();
                out.extend(inside.filter(|place| {
                    let key = &self.keys[*place];
                    (!outside || key.who == Who::World)
                        && !except.iter().any(|e| key.cidrs.binary_search(e).is_ok())
                }));
            }
        }
    }

    /// Pods of selected namespaces. The namespaces are looked for first where their selector says which.
    fn elsewhere(&self, namespaces: &Selector, pods: &Selector, index: &Index, out: &mut Vec<usize>) {
        if namespaces.is_everything() {
            return self.selected(pods, self.pods(), out);
        }
        for number in self.namespace_labels.candidates(namespaces, 0..self.namespaces.len()) {
            let (name, range) = &self.namespaces[number];
            if index.namespaces.get(name).is_some_and(|entry| namespaces.matches(&entry.labels)) {
                self.selected(pods, range.clone(), out);
            }
        }
    }

    /// Selected pods within a range of places.
    fn selected(&self, pods: &Selector, range: Range<usize>, out: &mut Vec<usize>) {
        let candidates = self.pod_labels.candidates(pods, range).into_iter();
        out.extend(candidates.filter(|place| match &self.keys[*place].who {
            Who::Workload { labels, .. } => pods.matches(labels),
            Who::Missing | Who::Node(_) | Who::World => false,
        }));
    }

    /// The pods that run as a service account: a range, for they are sorted.
    fn of_account(&self, namespace: &str, name: &str) -> Range<usize> {
        let range = self.of_namespace(namespace);
        let pods = &self.keys[range.clone()];
        let start = pods.partition_point(|key| account(key) < Some(name));
        let end = pods.partition_point(|key| account(key) <= Some(name));
        range.start + start..range.start + end
    }

    /// For a named port on egress: each number that one of these peers has it on, with those peers.
    pub(crate) fn by_port_number(
        &self,
        peers: Option<&[usize]>,
        name: &str,
        protocol: Protocol,
    ) -> BTreeMap<u16, Vec<usize>> {
        let mut out: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        let mut add = |place: usize| {
            for port in &self.keys[place].ports {
                if &*port.name == name && port.protocol == protocol {
                    out.entry(port.number).or_default().push(place);
                }
            }
        };
        match peers {
            Some(places) => places.iter().copied().for_each(&mut add),
            None => self.pods().for_each(&mut add),
        }
        out
    }
}

fn account(key: &Key) -> Option<&str> {
    match &key.who {
        Who::Workload { service_account, .. } => Some(service_account),
        Who::Missing | Who::Node(_) | Who::World => None,
    }
}
