//! The node's own network: sysctls, bridges, netfilter, tunnels, MTUs.
//!
//! Reads the network namespace of its thread. Called by `check`.

use super::{Finding, line};
use crate::families::has_v6;
use crate::helper::ROUTE_MTU as PROXY_MTU;
use crate::netlink::{DUMP, Link, Message, Netlink, attributes, text};
use sluice_bpf_abi::MAX_TUNNELS;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

/// Percent of conntrack's table from which it will be full at the next burst.
const FULL: u64 = 90;
/// A message of `nfnetlink`: subsystem 10 (nf_tables), `NFT_MSG_GETTABLE`.
const GET_TABLES: u16 = 10 << 8 | 1;
const TABLE_NAME: u16 = 1;
/// A symbol of the kernel that nf_tables brings.
const NFTABLES: &str = " nft_register_chain_type";

/// Every finding.
pub(super) fn look() -> Vec<Finding> {
    let links = Netlink::open().and_then(|netlink| Ok((netlink.links()?, netlink.addresses()?)));
    let (links, addresses) = match links {
        Ok(found) => found,
        Err(error) => {
            let remedy = "allow socket(AF_NETLINK) in seccomp";
            return vec![Finding::unknown("node.devices", format!("cannot list devices: {error}"), remedy)];
        }
    };
    let global = addresses.iter().any(|(_, address)| is_global_v6(*address));
    vec![
        forwarding_v4(line("/proc/sys/net/ipv4/ip_forward").as_deref()),
        ipv6(global),
        rp_filter(),
        bridges(&links),
        conntrack(),
        netfilter(),
        tunnels(&links),
        mtu(&links),
    ]
}

fn is_global_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_multicast())
}

fn forwarding_v4(value: Option<&str>) -> Finding {
    const CHECK: &str = "node.forwarding";
    match value {
        Some("0") => Finding::fail(
            CHECK,
            "the node does not forward IPv4: no pod reaches anything, and the proxy nobody",
            "sysctl -w net.ipv4.ip_forward=1 (and in /etc/sysctl.d)",
        ),
        Some(_) => Finding::ok(CHECK, "IPv4 is forwarded"),
        None => Finding::unknown(CHECK, "no net.ipv4.ip_forward to read", "mount /proc"),
    }
}

fn ipv6(global: bool) -> Finding {
    const CHECK: &str = "node.ipv6";
    let read = |name: &str| line(&format!("/proc/sys/net/ipv6/conf/all/{name}"));
    if !has_v6() {
        return Finding::ok(CHECK, "the kernel has none: IPv4 alone");
    }
    if read("disable_ipv6").as_deref() == Some("1") {
        return Finding::ok(CHECK, "switched off (disable_ipv6=1): IPv4 alone");
    }
    if !global {
        return Finding::ok(CHECK, "no address of it on the node: IPv4 alone");
    }
    match read("forwarding").as_deref() {
        Some("0") => Finding::warn(
            CHECK,
            "the node has IPv6 addresses and does not forward IPv6: pods and the proxy have none of it",
            "sysctl -w net.ipv6.conf.all.forwarding=1 (and in /etc/sysctl.d)",
        ),
        _ => Finding::ok(CHECK, "there, and forwarded"),
    }
}

/// Any value will do: see docs/networking.md.
fn rp_filter() -> Finding {
    let value = line("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or_default();
    let found = match value.as_str() {
        "0" => "off",
        "1" => "strict; the helper device gets loose, and an address",
        "2" => "loose; the helper device gets an address",
        _ => "not to be read",
    };
    Finding::ok("node.rp-filter", found)
}

fn bridges(links: &[Link]) -> Finding {
    const CHECK: &str = "node.bridges";
    let bridges: BTreeMap<u32, &str> = links
        .iter()
        .filter(|link| link.kind == "bridge")
        .map(|link| (link.index, link.name.as_str()))
        .collect();
    let ports = links.iter().filter(|link| link.kind == "veth");
    let used: BTreeSet<&str> = ports.filter_map(|link| bridges.get(&link.master?).copied()).collect();
    if used.is_empty() {
        return Finding::ok(CHECK, "no pod's device is a bridge's port");
    }
    let names = used.into_iter().collect::<Vec<_>>().join(", ");
    let off =
        |name: &str| line(&format!("/proc/sys/net/bridge/bridge-nf-call-{name}")).as_deref() != Some("1");
    let missing: Vec<_> = ["iptables", "ip6tables"]
        .into_iter()
        .filter(|name| off(name) && (*name == "iptables" || has_v6()))
        .collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, format!("pods on {names}, whose frames netfilter sees"));
    }
    let settings: Vec<_> = missing.iter().map(|name| format!("net.bridge.bridge-nf-call-{name}=1")).collect();
    Finding::warn(
        CHECK,
        format!(
            "pods on {names}, whose frames netfilter does not see: a Service between two of them does not work"
        ),
        format!("modprobe br_netfilter; sysctl -w {}", settings.join(" ")),
    )
}

fn conntrack() -> Finding {
    const CHECK: &str = "node.conntrack";
    let read =
        |name: &str| line(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))?.parse::<u64>().ok();
    match (read("count"), read("max")) {
        (Some(count), Some(max)) if max > 0 && count * 100 / max >= FULL => Finding::warn(
            CHECK,
            format!("{count} of {max} entries: when it is full, new connections are dropped by netfilter"),
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", max * 2),
        ),
        (Some(count), Some(max)) => Finding::ok(CHECK, format!("{count} of {max} entries")),
        // A namespace other than the first has the number, and not always the limit.
        (Some(count), None) => Finding::ok(CHECK, format!("{count} entries")),
        _ => Finding::ok(CHECK, "not loaded: nothing is translated on this node"),
    }
}

/// The legacy tables of iptables, and those of nftables (which iptables-nft writes as well).
fn netfilter() -> Finding {
    const CHECK: &str = "node.netfilter";
    let legacy: BTreeSet<String> = ["ip", "ip6"]
        .into_iter()
        .filter_map(|family| line(&format!("/proc/thread-self/net/{family}_tables_names")))
        .flat_map(|names| names.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let legacy = legacy.into_iter().collect::<Vec<_>>().join(", ");
    let new = match tables() {
        Ok(tables) => tables.into_iter().collect::<Vec<_>>().join(", "),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let remedy = "run it as the node's root: `sudo sluice-proxy check`";
            return Finding::unknown(CHECK, "the tables of nftables cannot be listed", remedy);
        }
        // No such subsystem.
        Err(_) => String::new(),
    };
    match (legacy.is_empty(), new.is_empty()) {
        (true, true) => Finding::ok(CHECK, "no tables"),
        (false, true) => Finding::ok(CHECK, format!("iptables (legacy): {legacy}")),
        (true, false) => Finding::ok(CHECK, format!("nftables: {new}")),
        (false, false) => Finding::warn(
            CHECK,
            format!("rules in both iptables (legacy): {legacy}; and nftables: {new}. Both judge each packet"),
            "let everything on the node write the same kind: `update-alternatives --config iptables`",
        ),
    }
}

fn tables() -> io::Result<BTreeSet<String>> {
    let mut tables = BTreeSet::new();
    // To ask a kernel that has not loaded them would load them.
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    if !symbols.contains(NFTABLES) {
        return Ok(tables);
    }
    let netlink = Netlink::open_netfilter()?;
    netlink.ask(Message::new(GET_TABLES, DUMP).bytes(&[0; 4]), |body| {
        let family = match body.first() {
            Some(1) => "inet",
            Some(2) => "ip",
            Some(3) => "arp",
            Some(5) => "netdev",
            Some(7) => "bridge",
            Some(10) => "ip6",
            _ => "?",
        };
        let name = attributes(body, 4).find(|attribute| attribute.0 == TABLE_NAME);
        tables.extend(name.map(|(_, name)| format!("{family} {}", text(name))));
    })?;
    Ok(tables)
}

fn tunnels(links: &[Link]) -> Finding {
    const CHECK: &str = "node.tunnels";
    let ports: BTreeSet<u16> = links.iter().filter_map(|link| link.tunnel).collect();
    let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    match ports.len() {
        0 => Finding::ok(CHECK, "no VXLAN and no Geneve"),
        few if few <= MAX_TUNNELS => {
            Finding::ok(CHECK, format!("UDP port {list}, which no pod may speak to at a node"))
        }
        _ => Finding::fail(
            CHECK,
            format!("tunnels on {} UDP ports ({list}); {MAX_TUNNELS} are looked at", ports.len()),
            "give those of one kind the same port, or remove devices that nobody uses",
        ),
    }
}

fn mtu(links: &[Link]) -> Finding {
    const CHECK: &str = "node.mtu";
    let pods = || links.iter().filter(|link| link.is_pods());
    let largest = pods().map(|link| link.mtu).max().unwrap_or(0);
    let smallest = pods().map(|link| link.mtu).min().unwrap_or(0);
    let tunnel = links.iter().filter(|link| link.tunnel.is_some()).min_by_key(|link| link.mtu);
    match tunnel {
        _ if largest == 0 => Finding::ok(CHECK, "no pod's device yet"),
        Some(tunnel) if tunnel.mtu < largest => Finding::warn(
            CHECK,
            format!(
                "pods have {largest}, the tunnel {} {}: each path finds that out by ICMP errors",
                tunnel.name, tunnel.mtu
            ),
            format!(
                "set the CNI's MTU to {}, and let no firewall drop ICMP type 3 and ICMPv6 type 2",
                tunnel.mtu
            ),
        ),
        _ if smallest < largest.min(PROXY_MTU) => Finding::ok(
            CHECK,
            format!("pods have {smallest} to {largest}; the proxy answers all by the MSS of {smallest}"),
        ),
        _ if largest > PROXY_MTU => Finding::ok(
            CHECK,
            format!("pods have up to {largest}; what goes through the proxy is cut to {PROXY_MTU}"),
        ),
        _ => Finding::ok(CHECK, format!("pods have {largest}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn link(kind: &str, index: u32) -> Link {
        Link { index, name: format!("{kind}{index}"), kind: kind.to_owned(), mtu: 1_500, ..Link::default() }
    }

    #[test]
    fn a_node_that_does_not_forward_cannot_run() {
        assert_eq!(forwarding_v4(Some("0")).status, Status::Fail);
        assert_eq!(forwarding_v4(Some("1")).status, Status::Ok);
        assert_eq!(forwarding_v4(None).status, Status::Unknown);
    }

    #[test]
    fn tunnels_beyond_what_the_programs_look_at_are_refused() {
        let mut links: Vec<Link> =
            (0..5).map(|i| Link { tunnel: Some(4_789 + i), ..link("vxlan", u32::from(i)) }).collect();
        assert_eq!(tunnels(&links).status, Status::Fail);
        links[4].tunnel = Some(4_789);
        assert_eq!(tunnels(&links).status, Status::Ok);
        assert_eq!(tunnels(&[]).status, Status::Ok);
    }

    #[test]
    fn a_tunnel_with_less_room_than_the_pods_is_told() {
        let pod = Link { peer_nsid: Some(0), peer: Some(2), ..link("veth", 7) };
        let tunnel = Link { tunnel: Some(4_789), mtu: 1_450, ..link("vxlan", 8) };
        let finding = mtu(&[pod.clone(), tunnel.clone()]);
        assert_eq!(finding.status, Status::Warn, "{finding:?}");
        assert!(finding.remedy.is_some_and(|remedy| remedy.contains("1450")));
        assert_eq!(mtu(&[Link { mtu: 1_450, ..pod.clone() }, tunnel]).status, Status::Ok);
        assert_eq!(mtu(&[]).status, Status::Ok);
        let narrow = Link { mtu: 1_300, ..pod.clone() };
        assert!(mtu(&[narrow, pod]).found.contains("1300 to 1500"));
    }
}
