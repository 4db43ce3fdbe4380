//! Finds the node's end of each endpoint's veth, by the address that the pod has.
//!
//! Looks into the named network namespaces under `/run/netns`, where CNI runtimes keep them. The other end
//! of the device that has the address must be a veth in the node's namespace that points back at it.

use crate::netlink::{Link, Mac, Netlink};
use crate::netns;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// Where the namespaces are.
const DIRECTORY: &str = "/run/netns";
/// Namespaces looked into. A kubelet runs some hundred pods; beyond this something else is wrong.
const MAX_NAMESPACES: usize = 4_096;

/// The node's ends of the veths, by the pod's address.
#[derive(Debug, Default)]
pub(crate) struct Found {
    by_address: HashMap<IpAddr, HashSet<u32>>,
    names: HashMap<u32, String>,
    /// The bridge, by its port.
    pub(crate) ports: HashMap<u32, u32>,
    /// The node's own addresses.
    pub(crate) node: Vec<IpAddr>,
    /// The hardware addresses of the node's devices: a frame to one of them is for the node.
    pub(crate) hardware: Vec<Mac>,
    /// The hardware addresses of the pods' own interfaces, by the node's end.
    pods: HashMap<u32, Mac>,
}

impl Found {
    /// The devices whose pods say that they have one of these addresses.
    pub(crate) fn candidates(&self, addresses: &[IpAddr]) -> BTreeSet<u32> {
        addresses.iter().filter_map(|address| self.by_address.get(address)).flatten().copied().collect()
    }

    /// The devices whose pods have any of the addresses.
    pub(crate) fn devices(&self) -> HashSet<u32> {
        self.by_address.values().flatten().copied().collect()
    }

    /// That nobody has these addresses who may.
    pub(crate) fn none(&self, addresses: &[IpAddr]) -> String {
        let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let others: Vec<_> =
            self.candidates(addresses).into_iter().map(|device| self.label(device)).collect();
        let but = match others.is_empty() {
            true => String::new(),
            false => format!(" but {}, which is another pod's", others.join(" and ")),
        };
        format!("no network namespace under {DIRECTORY} has a veth with {}{but}", list.join(" or "))
    }

    /// That nobody knows behind which of these devices an endpoint is.
    pub(crate) fn several(&self, devices: &[u32]) -> String {
        let names: Vec<_> = devices.iter().map(|device| self.label(*device)).collect();
        format!(
            "nobody knows whether it is behind {}: several pods claim the same address; until they do not, nothing \
             passes there",
            names.join(" or ")
        )
    }

    fn label(&self, device: u32) -> &str {
        self.name(device).unwrap_or("?")
    }

    /// The device by which the node reaches what is behind a veth.
    pub(crate) fn way(&self, device: u32) -> u32 {
        self.ports.get(&device).copied().unwrap_or(device)
    }

    /// The hardware address of the pod behind a device, where it is a bridge's port: there frames go by it, and to send
    /// from another's is to take what is meant for the other. Over a routed veth nothing but the node hears the pod,
    /// and routes nothing by it.
    pub(crate) fn mac(&self, device: u32) -> Option<Mac> {
        self.ports.get(&device).and_then(|_| self.pods.get(&device)).copied()
    }

    /// The name of a device of the node.
    pub(crate) fn name(&self, device: u32) -> Option<&str> {
        self.names.get(&device).map(String::as_str)
    }
}

#[cfg(test)]
impl Found {
    /// What these pods say, and these devices.
    pub(crate) fn of(
        claims: impl Iterator<Item = (IpAddr, u32)>,
        devices: impl Iterator<Item = u32>,
    ) -> Self {
        let mut found = Self::default();
        claims.for_each(|(address, device)| {
            found.by_address.entry(address).or_default().insert(device);
        });
        found.names = devices.map(|device| (device, format!("veth{device}"))).collect();
        found
    }
}

/// The device that the node sends what is for an address to.
pub(crate) fn routed(node: BorrowedFd<'_>, address: IpAddr) -> Option<u32> {
    netns::within(node, || Netlink::open()?.device_to(address)).ok().flatten()
}

/// Looks for these addresses.
pub(crate) fn discover(node: BorrowedFd<'_>, wanted: &HashSet<IpAddr>) -> io::Result<Found> {
    let mut found = Found::default();
    let (links, addresses) = netns::within(node, || {
        let netlink = Netlink::open()?;
        Ok((netlink.links()?, netlink.addresses()?))
    })?;
    found.node = addresses.into_iter().map(|(_, address)| address).filter(|a| !a.is_loopback()).collect();
    let bridges: HashSet<u32> = links.iter().filter(|l| l.kind == "bridge").map(|l| l.index).collect();
    let port = |link: &Link| Some((link.index, link.master.filter(|master| bridges.contains(master))?));
    found.ports = links.iter().filter_map(port).collect();
    found.hardware = links.iter().filter_map(|link| link.mac).collect();
    let veths: HashMap<u32, Link> =
        links.into_iter().filter(|l| l.kind == "veth").map(|l| (l.index, l)).collect();
    found.names = veths.values().map(|link| (link.index, link.name.clone())).collect();
    for netns in namespaces(node)? {
        // One that goes away while we look is not an error: its pods are missing, and said to be.
        let Ok(ends) = ends(netns.as_fd(), wanted) else { continue };
        if ends.is_empty() {
            continue;
        }
        let nsid = netns::within(node, || Netlink::open()?.nsid(netns.as_fd()))?;
        for (address, pod) in ends {
            let Some(link) = pod.peer.and_then(|peer| veths.get(&peer)) else { continue };
            if link.peer == Some(pod.index) && link.peer_nsid.is_some() && link.peer_nsid == nsid {
                found.by_address.entry(address).or_default().insert(link.index);
                found.pods.extend(pod.mac.map(|mac| (link.index, mac)));
            }
        }
    }
    Ok(found)
}

/// The UDP ports of the node's tunnels, each once.
pub(crate) fn tunnels(node: BorrowedFd<'_>) -> io::Result<BTreeSet<u16>> {
    netns::within(node, || Ok(Netlink::open()?.links()?.into_iter().filter_map(|link| link.tunnel).collect()))
}

/// The veth ends of a namespace that have a wanted address.
fn ends(netns: BorrowedFd<'_>, wanted: &HashSet<IpAddr>) -> io::Result<Vec<(IpAddr, Link)>> {
    netns::within(netns, || {
        let netlink = Netlink::open()?;
        let addresses: Vec<_> =
            netlink.addresses()?.into_iter().filter(|(_, address)| wanted.contains(address)).collect();
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let links: HashMap<u32, Link> = netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let veth = |index| links.get(&index).filter(|link| link.kind == "veth").cloned();
        Ok(addresses.into_iter().filter_map(|(index, address)| Some((address, veth(index)?))).collect())
    })
}

/// Every namespace under the directory but the node's own, each once.
pub(crate) fn namespaces(node: BorrowedFd<'_>) -> io::Result<Vec<File>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for entry in entries.take(MAX_NAMESPACES) {
        let Ok(file) = File::open(entry?.path()) else { continue };
        let status = rustix::fs::fstat(&file)?;
        if !netns::same(&file, node)? && seen.insert((status.st_dev, status.st_ino)) {
            all.push(file);
        }
    }
    Ok(all)
}
