//! A snapshot as the kernel has it: what is in the five maps of its generation.
//!
//! Knows nothing of devices: who is where comes in. Nor of how it is written, which `slots` knows.

use crate::discover::Found;
use crate::error::ApplyError;
use crate::fill::{self, Fill};
use crate::maps::Maps;
use crate::netlink::Mac;
use crate::origins::{Numbering, Origins};
use crate::plain::{Leading, Plain};
use sluice_bpf_abi::{
    Action, Address, EndpointValue, FlowKind, HOST_CLASS, LOCAL_NODE, MAX_CLASSES, MAX_ENDPOINTS, MAX_LOCALS,
    MAX_ROWS, MAX_SERVICES, NO_PROFILE, REMOTE_NODE, RowKey, RowValue, SERVICE_CLASS, SLOTS, ServiceKey,
    endpoint_flag, hardware, map, row_flag,
};
use sluice_policy::{
    ClassId, Direction, Identity, PortPrefix, Prefix, Protocol, RowAction, RowEntry, ServiceRow, ServiceRows,
    Snapshot, VipPort,
};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

type Rows = HashMap<Plain<Leading<RowKey>>, Plain<RowValue>>;

/// One generation, ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    rows: Rows,
    classes: HashMap<Plain<Leading<Address>>, u32>,
    /// Class by port of a Service.
    services: HashMap<Plain<ServiceKey>, u32>,
    /// By device.
    pub(crate) endpoints: HashMap<u32, EndpointValue>,
    /// Bridge by port, of every port of the node.
    ports: HashMap<u32, u32>,
    /// Owner by address.
    locals: HashMap<Address, u32>,
    /// What the rows name.
    pub(crate) origins: Origins,
}

impl Plan {
    /// Rows and classes of a snapshot; the node's own addresses. Endpoints are added after.
    pub(crate) fn new(snapshot: &Snapshot, found: &Found) -> Self {
        let services = snapshot.service_rows();
        let (rows, origins) = named(snapshot, &services);
        Self {
            rows,
            origins,
            services: services.ports.iter().map(service).collect(),
            classes: snapshot.addresses.iter().map(|(prefix, class)| self::class(prefix, *class)).collect(),
            endpoints: HashMap::new(),
            ports: found.ports.clone(),
            locals: locals(snapshot, found),
        }
    }

    /// An endpoint behind a device. An address of the node itself that a pod has is the pod's.
    pub(crate) fn endpoint(&mut self, device: u32, value: EndpointValue, addresses: &[IpAddr]) {
        self.endpoints.insert(device, value);
        self.locals.extend(addresses.iter().map(|address| (bytes(*address), device)));
    }

    /// A device that nobody knows whose it is, unless it is an endpoint's: nothing passes its hooks. Whether it was not.
    pub(crate) fn close(&mut self, device: u32, way: u32) -> bool {
        let nobodys = !self.endpoints.contains_key(&device);
        let closed = EndpointValue { profile: NO_PROFILE, way, ..EndpointValue::default() };
        self.endpoints.entry(device).or_insert(closed);
        nobodys
    }

    /// Which of these addresses are behind another device now, or behind none.
    pub(crate) fn moved(&self, before: &HashMap<Address, u32>) -> HashSet<IpAddr> {
        let moved = before.iter().filter(|(address, device)| self.locals.get(*address) != Some(device));
        moved.map(|(address, _)| IpAddr::V6(Ipv6Addr::from(*address)).to_canonical()).collect()
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// How full its maps are.
    pub(crate) fn fill(&self) -> Vec<Fill> {
        let ends = self.endpoints.len() + self.ports.len();
        vec![
            Fill { map: map::ROWS, used: self.rows.len(), max: MAX_ROWS },
            Fill { map: map::CLASSES, used: self.classes.len(), max: MAX_CLASSES },
            Fill { map: map::SERVICES, used: self.services.len(), max: MAX_SERVICES },
            Fill { map: map::ENDPOINTS, used: ends, max: MAX_ENDPOINTS },
            Fill { map: map::LOCALS, used: self.locals.len(), max: MAX_LOCALS },
        ]
    }

    fn fits(&self) -> Result<(), ApplyError> {
        let full = self.fill().into_iter().find(|fill| fill.used > fill.max as usize);
        full.map_or(Ok(()), |Fill { map, used, max }| {
            let (what, remedy) = fill::meaning(map);
            Err(ApplyError::Full { map, what, count: used, max, remedy })
        })
    }

    /// What is to be written, if it fits.
    pub(crate) fn contents(self) -> Result<Contents, ApplyError> {
        self.fits()?;
        let port = |way| EndpointValue { profile: NO_PROFILE, way, ..EndpointValue::default() };
        let ports = self.ports.into_iter().map(|(device, way)| (device, Plain(port(way))));
        // After the ports, which most of them are: the last word counts.
        let endpoints = ports.chain(self.endpoints.into_iter().map(|(device, value)| (device, Plain(value))));
        Ok(Contents {
            rows: self.rows,
            classes: self.classes,
            services: self.services,
            endpoints: endpoints.collect(),
            locals: self.locals,
        })
    }
}

/// What is in the five maps of a generation.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) rows: HashMap<Plain<Leading<RowKey>>, Plain<RowValue>>,
    pub(crate) classes: HashMap<Plain<Leading<Address>>, u32>,
    pub(crate) services: HashMap<Plain<ServiceKey>, u32>,
    pub(crate) endpoints: HashMap<u32, Plain<EndpointValue>>,
    pub(crate) locals: HashMap<Address, u32>,
}

/// The addresses of the other nodes and of this one, and the hardware addresses of its devices. What a snapshot says
/// of this node's own addresses is nothing beside what the node itself says.
fn locals(snapshot: &Snapshot, found: &Found) -> HashMap<Address, u32> {
    let node = |class: &ClassId| {
        let class = snapshot.classes.get(class.0 as usize);
        class.is_some_and(|class| matches!(class.identity, Identity::Node(_)))
    };
    let hosts = snapshot.addresses.iter().filter(|(prefix, class)| prefix.mapped_len() == 128 && node(class));
    let remote = hosts.map(|(prefix, _)| (Ipv6Addr::from(prefix.mapped_bits()).octets(), REMOTE_NODE));
    let here = found.node.iter().map(|address| bytes(*address));
    let devices = found.hardware.iter().map(|mac| hardware(*mac));
    remote.chain(here.chain(devices).map(|address| (address, LOCAL_NODE))).collect()
}

/// The hardware address that an endpoint is held to since it was first seen with these addresses behind this device.
///
/// It is never read anew while the pod has the device: the pod itself may change it (`CAP_NET_ADMIN`), also to one that
/// is another's. It then sends nothing any more, until it has its own again or is made anew.
pub(crate) fn held(maps: &Maps, device: u32, addresses: &[IpAddr]) -> Option<Mac> {
    if !addresses.iter().any(|address| owner(maps, *address) == Some(device)) {
        return None;
    }
    let slot = (epoch(maps).ok()? % u64::from(SLOTS)) as u32;
    let Plain(value) = maps.endpoints.get(&slot, 0).ok()?.get(&device, 0).ok()?;
    (value.flags & endpoint_flag::MAC != 0).then_some(value.mac)
}

/// Whom the generation in force says an address belongs to.
pub(crate) fn owner(maps: &Maps, address: IpAddr) -> Option<u32> {
    let slot = (epoch(maps).ok()? % u64::from(SLOTS)) as u32;
    let locals = maps.locals.get(&slot, 0).ok()?;
    locals.get(&bytes(address), 0).ok().filter(|owner| *owner < REMOTE_NODE)
}

/// The one in force.
pub(crate) fn epoch(maps: &Maps) -> Result<u64, ApplyError> {
    maps.epoch.get(&0, 0).map_err(failed("read", map::EPOCH))
}

pub(crate) fn failed<E: std::fmt::Display>(
    what: &'static str,
    map: &'static str,
) -> impl FnOnce(E) -> ApplyError {
    move |error| ApplyError::Map { what, map, reason: error.to_string() }
}

fn bytes(address: IpAddr) -> Address {
    sluice_policy::prefix::bits(address).to_be_bytes()
}

fn class(prefix: Prefix, class: ClassId) -> (Plain<Leading<Address>>, u32) {
    let key = Ipv6Addr::from(prefix.mapped_bits()).octets();
    (Plain(Leading { bits: u32::from(prefix.mapped_len()), key }), class.0)
}

/// The rows, with what they name; where those do not fit, the fewer ones that name nothing. Names are for people, and
/// no verdict waits for them.
fn named(snapshot: &Snapshot, services: &ServiceRows) -> (Rows, Origins) {
    let mut numbering = Numbering::new(snapshot);
    let of_services = || services.rows.iter().map(service_row);
    let of_host = || snapshot.host_rows().map(|entry| host_row(&entry));
    let entries = snapshot
        .rows()
        .chain(of_services())
        .chain(of_host())
        .map(|entry| row(&entry, numbering.number(&entry)));
    let rows: Rows = entries.take(MAX_ROWS as usize + 1).collect();
    if rows.len() <= MAX_ROWS as usize {
        return (rows, numbering.done());
    }
    let entries = snapshot.rows_unnamed().chain(of_services()).chain(of_host()).map(|entry| row(&entry, 0));
    (entries.collect(), Origins::default())
}

fn service(port: &VipPort) -> (Plain<ServiceKey>, u32) {
    let VipPort { address, protocol, port, class } = *port;
    let key = ServiceKey {
        address: bytes(address),
        port: port.to_be_bytes(),
        protocol: protocol_number(protocol),
        ..ServiceKey::default()
    };
    (Plain(key), SERVICE_CLASS | class)
}

/// The class stands for a port already: its row is that of every number.
fn service_row(entry: &ServiceRow) -> RowEntry {
    RowEntry {
        profile: entry.profile,
        direction: Direction::Egress,
        class: ClassId(SERVICE_CLASS | entry.class),
        protocol: entry.protocol,
        ports: PortPrefix { port: 0, len: 0 },
        row: entry.row,
    }
}

/// Asked for what the node itself sends, and for nothing else.
fn host_row(entry: &RowEntry) -> RowEntry {
    RowEntry { class: ClassId(HOST_CLASS | entry.class.0), ..*entry }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => RowKey::TCP,
        Protocol::Udp => RowKey::UDP,
        Protocol::Sctp => RowKey::SCTP,
        Protocol::Icmp => RowKey::ICMP,
        Protocol::Other => RowKey::OTHER,
    }
}

fn row(entry: &RowEntry, rule: u32) -> (Plain<Leading<RowKey>>, Plain<RowValue>) {
    let key = RowKey {
        profile: entry.profile.0,
        class: entry.class.0,
        direction: match entry.direction {
            Direction::Ingress => FlowKind::Ingress as u8,
            Direction::Egress => FlowKind::Egress as u8,
        },
        protocol: protocol_number(entry.protocol),
        port: entry.ports.port.to_be_bytes(),
    };
    let action = match entry.row.action {
        RowAction::Allow => Action::Allow,
        RowAction::Deny => Action::Deny,
        RowAction::ToProxy => Action::ToProxy,
    };
    let mut flags = 0;
    if entry.row.fail_open {
        flags |= row_flag::FAIL_OPEN;
    }
    if entry.row.audit {
        flags |= row_flag::AUDIT;
    }
    if entry.row.reject {
        flags |= row_flag::REJECT;
    }
    let bits = RowKey::FIXED_BITS + u32::from(entry.ports.len);
    let value = RowValue { action: action as u8, flags, rule, ..RowValue::default() };
    (Plain(Leading { bits, key }), Plain(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_bpf_abi::{ICMP_NONE, icmp_number};
    use sluice_policy::port::icmp_port;
    use sluice_policy::{PortPrefix, ProfileId, Row};

    fn key(protocol: Protocol, port: u16, len: u8) -> (u32, RowKey) {
        let entry = RowEntry {
            profile: ProfileId(3),
            direction: Direction::Ingress,
            class: ClassId(7),
            protocol,
            ports: PortPrefix { port, len },
            row: Row { action: RowAction::Allow, fail_open: false, audit: false, reject: false, by: None },
        };
        let Plain(Leading { bits, key }) = row(&entry, 0).0;
        (bits, key)
    }

    /// Each type of each family has the row that the programs ask for.
    #[test]
    fn an_icmp_type_is_looked_up_as_it_is_written() {
        for (v6, kind) in [false, true].into_iter().flat_map(|v6| (0..=u8::MAX).map(move |kind| (v6, kind))) {
            let (bits, key) = key(Protocol::Icmp, icmp_port(v6, kind), 16);
            assert_eq!((bits, key.protocol), (RowKey::BITS, RowKey::ICMP));
            assert_eq!(key.port, icmp_number(v6, kind), "type {kind}, IPv6: {v6}");
            assert_ne!(key.port, ICMP_NONE);
        }
    }

    /// The largest plan that fits, and one more of each.
    #[test]
    fn what_does_not_fit_says_where_how_much_and_what_to_do() {
        type Put = fn(&mut Plan, u32);
        let puts: [(&str, u32, Put); 6] = [
            (map::ROWS, MAX_ROWS, |plan, n| {
                let key = RowKey { class: n, ..RowKey::default() };
                plan.rows.insert(Plain(Leading { bits: RowKey::BITS, key }), Plain(RowValue::default()));
            }),
            (map::CLASSES, MAX_CLASSES, |plan, n| {
                let key = Ipv6Addr::from(u128::from(n)).octets();
                plan.classes.insert(Plain(Leading { bits: 128, key }), n);
            }),
            (map::SERVICES, MAX_SERVICES, |plan, n| {
                let address = Ipv6Addr::from(u128::from(n)).octets();
                plan.services.insert(Plain(ServiceKey { address, ..ServiceKey::default() }), n);
            }),
            (map::ENDPOINTS, MAX_ENDPOINTS, |plan, n| {
                plan.endpoints.insert(n, EndpointValue::default());
            }),
            (map::ENDPOINTS, MAX_ENDPOINTS, |plan, n| {
                plan.ports.insert(n, 1);
            }),
            (map::LOCALS, MAX_LOCALS, |plan, n| {
                plan.locals.insert(Ipv6Addr::from(u128::from(n)).octets(), n);
            }),
        ];
        for (name, most, put) in puts {
            let mut plan = Plan::default();
            (0..most).for_each(|n| put(&mut plan, n));
            assert!(plan.fits().is_ok(), "{name}: {most} do not fit");
            put(&mut plan, most);
            let said = plan.fits().map_err(|error| error.to_string()).unwrap_err();
            let (what, remedy) = fill::meaning(name);
            for word in [name, what, remedy, &(most + 1).to_string(), &most.to_string()] {
                assert!(said.contains(word), "{said}: no {word}");
            }
        }
    }

    #[test]
    fn a_port_is_written_in_network_order_and_a_prefix_by_its_length() {
        assert_eq!(key(Protocol::Tcp, 0x1f90, 16).1.port, [0x1f, 0x90]);
        // All types of ICMPv6.
        let (bits, every_v6) = key(Protocol::Icmp, icmp_port(true, 0), 8);
        assert_eq!((bits, every_v6.port), (RowKey::FIXED_BITS + 8, [1, 0]));
        assert_eq!(key(Protocol::Icmp, 0, 0).0, RowKey::FIXED_BITS);
    }
}
