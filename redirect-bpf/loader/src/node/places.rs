//! Which device each endpoint of a snapshot is behind, and which devices are nobody's and must be closed.
//!
//! Knows nothing of how hooks are attached. Called by the node for each snapshot; the decision itself is `placing`'s.

use super::{Missing, Node};
use crate::discover::{self, Found};
use crate::generation::{self, Plan};
use crate::placing::{self, Known, Place};
use sluice_bpf_abi::{EndpointValue, endpoint_flag};
use sluice_policy::{Endpoint, Snapshot};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The devices that hooks are for, each with the name of the endpoint behind it; none where it is closed.
pub(super) type Devices = Vec<(u32, Option<String>)>;

/// What is known of an address that no pod can change.
struct Word<'a>(&'a Node);

impl Known for Word<'_> {
    fn in_force(&self, address: IpAddr) -> Option<u32> {
        generation::owner(&self.0.maps, address).or_else(|| self.0.before.owner(address))
    }

    fn routed(&self, address: IpAddr) -> Option<u32> {
        discover::routed(self.0.netns.as_fd(), address)
    }
}

impl Node {
    /// Puts a snapshot's endpoints behind their devices in a plan, and the devices that are nobody's for certain behind
    /// none.
    pub(super) fn place(
        &mut self,
        snapshot: &Snapshot,
        found: &Found,
        plan: &mut Plan,
        missing: &mut Vec<Missing>,
    ) -> (Devices, HashMap<u32, Arc<Endpoint>>) {
        let (mut devices, mut endpoints) = (Vec::new(), HashMap::new());
        let places = self.places(found, snapshot);
        for (endpoint, place) in snapshot.endpoints.iter().zip(places.iter().cloned()) {
            match place {
                Place::At(device) if plan.endpoints.contains_key(&device) => {
                    let why = "another endpoint of this snapshot has the same device".to_owned();
                    missing.push(Missing { endpoint: name(endpoint), why });
                }
                Place::At(device) => {
                    let value = self.value(found, device, endpoint);
                    plan.endpoint(device, value, &endpoint.addresses);
                    endpoints.insert(device, endpoint.clone());
                    devices.push((device, Some(name(endpoint))));
                }
                Place::Contested(_, why) | Place::Missing(why) => {
                    missing.push(Missing { endpoint: name(endpoint), why });
                }
            }
        }
        let closed = self.closed(found, &places, snapshot).into_iter();
        devices.extend(
            closed.filter(|device| plan.close(*device, found.way(*device))).map(|device| (device, None)),
        );
        (devices, endpoints)
    }

    /// The place of each endpoint. One that cannot be found keeps the device that the generation in force knows it by,
    /// as long as that is there: not to find a pod must not let it go.
    fn places(&mut self, found: &Found, snapshot: &Snapshot) -> Vec<Place> {
        let addresses: Vec<&[IpAddr]> = snapshot.endpoints.iter().map(|e| &e.addresses[..]).collect();
        let places = placing::place(&addresses, found, &Word(self));
        let mut claims = HashSet::new();
        for (endpoint, place) in snapshot.endpoints.iter().zip(&places) {
            let others = found.candidates(&endpoint.addresses).into_iter();
            if let Place::At(own) = place {
                claims.extend(others.filter(|device| device != own).map(|device| (name(endpoint), device)));
            }
        }
        for (endpoint, device) in claims.difference(&self.claims) {
            let device = found.name(*device).unwrap_or("?");
            tracing::warn!(
                endpoint,
                device,
                "the pod behind this device has taken an address of the endpoint, and gets nothing by it: what it \
                 sends from there is dropped (spoofed)"
            );
        }
        self.claims = claims;
        places
    }

    /// Devices that are nobody's for sure and must not be without hooks: those of which it is not known whose they are,
    /// and those that had hooks for an address that is now elsewhere.
    fn closed(&self, found: &Found, places: &[Place], snapshot: &Snapshot) -> HashSet<u32> {
        let contested = places.iter().flat_map(|place| match place {
            Place::Contested(devices, _) => &devices[..],
            Place::At(_) | Place::Missing(_) => &[],
        });
        let addresses = snapshot.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        let before = addresses.filter_map(|address| Word(self).in_force(*address));
        let there = |device: &u32| found.name(*device).is_some();
        contested.copied().chain(before.filter(there)).collect()
    }

    /// What the programs know of an endpoint.
    fn value(&self, found: &Found, device: u32, endpoint: &Endpoint) -> EndpointValue {
        let mut value =
            EndpointValue { profile: endpoint.profile.0, way: found.way(device), ..EndpointValue::default() };
        let Some(now) = found.mac(device) else { return value };
        value.mac = generation::held(&self.maps, device, &endpoint.addresses).unwrap_or(now);
        value.flags |= endpoint_flag::MAC;
        if value.mac != now {
            tracing::warn!(
                endpoint = name(endpoint),
                "has changed its hardware address: what it sends is dropped (spoofed_mac) until it has the first one \
                 again or the pod is made anew"
            );
        }
        value
    }
}

fn name(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.workload.namespace, endpoint.workload.pod)
}
