//! The proxy's network namespace and the helper veth that joins it to the node's.
//!
//! Arrangement P: the node gets no rule, no route and no sysctl, but those of the helper's own outer end;
//! everything else is inside. Each thing is read back. Knows nothing of eBPF.

use crate::crash;
use crate::error::SetupError;
use crate::families::has_v6;
use crate::netlink::{End, Link, Mac, Metrics, Netlink, Way};
use crate::netns;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Once;

/// What the loader knows the helper by.
pub(crate) const ALIAS: &str = "sluice helper";
const OUTER_MAC: Mac = [0x02, 0x53, 0x4c, 0x55, 0x00, 0x01];
const INNER_MAC: Mac = [0x02, 0x53, 0x4c, 0x55, 0x00, 0x02];
/// Next hops that nobody has: the helper's outer end takes whatever is sent to them.
const NEXT_HOP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 83, 76));
const NEXT_HOP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x534c, 0x55));
/// The outer end's own address, where the node's reverse-path filter wants it to have one.
const OUTER_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 83, 77);
/// The table that makes everything local for the proxy's namespace.
const TABLE: u32 = 100;
const RULE_PRIORITY: u32 = 100;
/// The helper takes whatever a pod's device lets out, jumbo frames too.
const DEVICE_MTU: u32 = 65_535;
/// What the proxy's own packets are cut to. A path with less says so in its peer's MSS.
pub(crate) const ROUTE_MTU: u32 = 1_500;
/// The least that its peers' packets are cut to: IPv6 asks for it on every link (RFC 8200, section 5), and no CNI gives
/// its pods less.
const LEAST_MTU: u32 = 1_280;
/// Sockets of the proxy's in TIME_WAIT: none. The kernel asks such a socket for a listener on the original
/// destination, where there is none, and the proxy's listener takes no SYN of a connection that still has a socket:
/// a client that comes again from the same port would be kept out for a minute. Nothing is lost: where the proxy
/// closes first, timestamps (RFC 7323) and ever higher first sequence numbers (RFC 6528) tell old segments from new.
const TIME_WAITS: &str = "0";
/// Seconds that a closed connection waits for its other end's FIN. The last 60 of them are TIME_WAIT's, of which there
/// is none: for half a minute a client's FIN is answered as usual, and with a reset from then on.
const FIN_TIMEOUT: &str = "90";
const SYN_COOKIES: &str = "net/ipv4/tcp_syncookies";
/// Every namespace has its loopback there.
const LOOPBACK: u32 = 1;
/// The proxy's namespace gets a number that no automatic one reaches, so that it is never reused for
/// another's: the numbers a kernel gives out by itself start at 0.
const NSID: i32 = 0x534c_5500;
/// Namespaces of earlier proxies that may still be there, held by connections that drain.
const NSIDS: i32 = 64;

/// The proxy's namespace and the way to it.
#[derive(Debug)]
pub(crate) struct Helper {
    pub(crate) netns: OwnedFd,
    pub(crate) outer: Link,
    pub(crate) inner_name: String,
    /// The number of the inner end, in the proxy's namespace.
    pub(crate) inner: u32,
    pub(crate) nsid: u32,
}

/// The device names that a node's name gives.
pub(crate) fn names(node: &str) -> (String, String) {
    (format!("{node}o"), format!("{node}i"))
}

impl Helper {
    /// Makes both. A helper that an earlier process left behind is replaced.
    pub(crate) fn create(node: &str, node_netns: BorrowedFd<'_>) -> Result<Self, SetupError> {
        let (outer_name, inner_name) = names(node);
        remove(node, node_netns)?;
        let inside = netns::create().map_err(SetupError::cannot(
            "create a network namespace for the proxy",
            "CAP_SYS_ADMIN is needed once",
        ))?;
        let at = inside.as_fd();
        // Before the veth: moving its end would give the namespace a number by itself.
        let nsid = netns::within(node_netns, || {
            let netlink = Netlink::open()?;
            let take = |id| match netlink.set_nsid(at, id) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                other => Some(other.map(|()| id)),
            };
            let taken = || Err(io::Error::other("namespaces of earlier proxies hold every number"));
            (NSID..NSID + NSIDS).find_map(take).unwrap_or_else(taken)
        })
        .map_err(SetupError::cannot("number the proxy's network namespace", "CAP_NET_ADMIN is needed"))?;
        let outer = join(node_netns, at, (&outer_name, &inner_name), nsid)?;
        let nsid = nsid as u32;
        let inner = outer.peer.unwrap_or_default();
        let helper = Self { netns: inside, outer, inner_name, inner, nsid };
        crash::point("make the helper");
        helper.set_up_inside(narrowest(node_netns)?)?;
        helper.set_up_outside(node_netns)?;
        Ok(helper)
    }

    /// Takes the one that a running process has, whose namespace it gave us. Nothing of it is made anew: what the
    /// proxy has open lives on. Its settings are made ours.
    pub(crate) fn adopt(node: &str, node_netns: BorrowedFd<'_>, inside: OwnedFd) -> Result<Self, SetupError> {
        let (outer_name, inner_name) = names(node);
        let there = netns::within(inside.as_fd(), || Netlink::open()?.link(&inner_name)).map_err(
            SetupError::cannot("look into the proxy's network namespace", "CAP_SYS_ADMIN is needed"),
        )?;
        let (here, nsid) = netns::within(node_netns, || {
            let netlink = Netlink::open()?;
            Ok((netlink.link(&outer_name)?, netlink.nsid(inside.as_fd())?))
        })
        .map_err(SetupError::cannot(
            format!("look for the device {outer_name}"),
            "CAP_NET_ADMIN is needed",
        ))?;
        // Both ends, and that they are each other's.
        let joined = here.zip(nsid).filter(|(outer, nsid)| {
            let ours = outer.alias == ALIAS && outer.kind == "veth" && outer.peer_nsid == Some(*nsid);
            ours && there.is_some_and(|inner| outer.peer == Some(inner.index))
        });
        let Some((outer, nsid)) = joined else {
            return Err(SetupError::Config {
                what: format!("the namespace that was handed over is not joined by {outer_name}"),
                remedy: "give both processes the same --device; or stop the one that runs first",
            });
        };
        let inner = outer.peer.unwrap_or_default();
        let helper = Self { netns: inside, outer, inner_name, inner, nsid: nsid as u32 };
        helper.set_up_inside(narrowest(node_netns)?)?;
        helper.set_up_outside(node_netns)?;
        Ok(helper)
    }

    /// Takes note of the pods' devices that are there now, of which one may be narrower than those before.
    pub(crate) fn measure(&self, node: BorrowedFd<'_>) -> Result<(), SetupError> {
        let answers = narrowest(node)?;
        netns::within(self.netns.as_fd(), || {
            let netlink = Netlink::open()?;
            let mut families = [false, true].into_iter().filter(|family| !family || has_v6());
            families.try_for_each(|v6| default_route(&netlink, v6, self.inner, answers).map(drop))
        })
        .map_err(SetupError::cannot("set the MSS of the proxy's routes", "CAP_NET_ADMIN is needed"))
    }

    /// Puts right what has changed of it: what that was.
    pub(crate) fn repair(&mut self, node: BorrowedFd<'_>) -> Result<Vec<String>, SetupError> {
        let name = self.outer.name.clone();
        let link = netns::within(node, || Netlink::open()?.link(&name))
            .map_err(SetupError::cannot(format!("look for {name}"), "CAP_NET_ADMIN is needed"))?;
        let mut changes = Vec::new();
        if link.is_none_or(|link| link.index != self.outer.index) {
            remove(name.strip_suffix('o').unwrap_or(&name), node)?;
            self.outer = join(node, self.netns.as_fd(), (&name, &self.inner_name), self.nsid as i32)?;
            self.inner = self.outer.peer.unwrap_or_default();
            changes.push(format!("the helper device {name} was gone"));
        }
        changes.extend(self.set_up_inside(narrowest(node)?)?);
        changes.extend(self.set_up_outside(node)?);
        Ok(changes)
    }

    /// What was not so before. `answers`: the longest packet that the proxy's peers may send it.
    fn set_up_inside(&self, answers: u32) -> Result<Vec<String>, SetupError> {
        let name = &self.inner_name;
        let mut changes = sysctls(
            self.netns.as_fd(),
            &[
                ("net/ipv4/conf/all/rp_filter".to_owned(), "0"),
                (format!("net/ipv4/conf/{name}/rp_filter"), "0"),
                ("net/ipv4/conf/all/forwarding".to_owned(), "0"),
                // A new namespace may begin with what the machine's own has, or with what it was booted with.
                ("net/ipv6/conf/all/disable_ipv6".to_owned(), "0"),
                ("net/ipv6/conf/lo/disable_ipv6".to_owned(), "0"),
                (format!("net/ipv6/conf/{name}/disable_ipv6"), "0"),
                ("net/ipv6/conf/all/forwarding".to_owned(), "0"),
                (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
                (format!("net/ipv6/conf/{name}/addr_gen_mode"), "1"),
                ("net/ipv4/tcp_max_tw_buckets".to_owned(), TIME_WAITS),
                ("net/ipv4/tcp_fin_timeout".to_owned(), FIN_TIMEOUT),
            ],
        )?;
        changes.extend(self.set_cookies()?);
        let v6 = has_v6();
        let routes = netns::within(self.netns.as_fd(), || {
            let netlink = Netlink::open()?;
            let (lo, inner) = (netlink.link("lo")?, netlink.link(name)?.ok_or(io::ErrorKind::NotFound)?);
            let mut changes = Vec::new();
            for link in [lo.as_ref(), Some(&inner)].into_iter().flatten().filter(|link| !link.up) {
                netlink.up(link.index)?;
                changes.push(format!("{} was down in the proxy's namespace", link.name));
            }
            changes.extend(described(&netlink, &inner, INNER_MAC)?);
            let inner = inner.index;
            for v6 in [false, true].into_iter().filter(|family| !family || v6) {
                let via = if v6 { NEXT_HOP_V6 } else { NEXT_HOP_V4 };
                let new = [
                    ("next hop", netlink.neighbour(inner, via, OUTER_MAC)?),
                    ("rule", netlink.rule(v6, name, TABLE, RULE_PRIORITY)?),
                    ("local route", netlink.route(v6, Way::LocalDefault { table: TABLE, device: LOOPBACK })?),
                ];
                let gone = new.iter().filter(|(_, new)| *new);
                let family = if v6 { "IPv6" } else { "IPv4" };
                changes.extend(
                    gone.map(|(what, _)| format!("the {family} {what} of the proxy's namespace was gone")),
                );
                changes.extend(default_route(&netlink, v6, inner, answers)?);
            }
            Ok(changes)
        })
        .map_err(SetupError::cannot(
            "set up the routes of the proxy's network namespace",
            "the kernel needs policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)",
        ))?;
        changes.extend(routes);
        Ok(changes)
    }

    /// SYN cookies (RFC 4987, section 3.6): forged SYNs that go to the proxy cost its listener nothing that lasts, nor do
    /// they fill its queue. That is what a new namespace begins with; whoever has them always (2) keeps that.
    fn set_cookies(&self) -> Result<Vec<String>, SetupError> {
        static TOLD: Once = Once::new();
        match sysctl(self.netns.as_fd(), SYN_COOKIES) {
            Ok(value) if value == "0" => sysctls(self.netns.as_fd(), &[(SYN_COOKIES.to_owned(), "1")]),
            Ok(_) => Ok(Vec::new()),
            Err(_) => {
                TOLD.call_once(|| {
                    tracing::warn!(
                        "this kernel has no SYN cookies (CONFIG_SYN_COOKIES): a flood of forged SYNs closes what \
                         goes through the proxy"
                    );
                });
                Ok(Vec::new())
            }
        }
    }

    /// What was not so before.
    fn set_up_outside(&self, node: BorrowedFd<'_>) -> Result<Vec<String>, SetupError> {
        let name = &self.outer.name;
        // The larger of `all` and the device's counts. Strict on `all` cannot be undone here, but loose on
        // the device is larger still, and lets pass what has any route back, if the device has an address.
        let all = sysctl(node, "net/ipv4/conf/all/rp_filter")?;
        let rp_filter = if all == "0" { "0" } else { "2" };
        let mut changes = sysctls(
            node,
            &[
                (format!("net/ipv4/conf/{name}/rp_filter"), rp_filter),
                (format!("net/ipv4/conf/{name}/forwarding"), "1"),
                (format!("net/ipv4/conf/{name}/accept_local"), "1"),
                (format!("net/ipv4/conf/{name}/send_redirects"), "0"),
                (format!("net/ipv6/conf/{name}/forwarding"), "1"),
                (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
                (format!("net/ipv6/conf/{name}/addr_gen_mode"), "1"),
            ],
        )?;
        for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            // This is looked at every few seconds, and told once.
            static TOLD: Once = Once::new();
            if sysctl(node, forwarding).is_ok_and(|value| value == "0") {
                TOLD.call_once(|| {
                    tracing::warn!(
                        sysctl = forwarding,
                        "is 0 on this node: the proxy's packets of that family go nowhere"
                    );
                });
            }
        }
        let link = netns::within(node, || {
            let netlink = Netlink::open()?;
            let link = netlink.link(name)?.ok_or(io::ErrorKind::NotFound)?;
            let mut changes: Vec<String> = described(&netlink, &link, OUTER_MAC)?.into_iter().collect();
            if rp_filter != "0" && netlink.add_address(link.index, OUTER_V4)? {
                changes.push(format!("the address of {name} was gone"));
            }
            if !link.up {
                changes.push(format!("{name} was down"));
            }
            netlink.up(link.index)?;
            Ok(changes)
        })
        .map_err(SetupError::cannot(format!("bring {name} up"), "CAP_NET_ADMIN is needed"))?;
        changes.extend(link);
        Ok(changes)
    }
}

/// Joins the two namespaces.
fn join(
    node: BorrowedFd<'_>,
    at: BorrowedFd<'_>,
    (outer_name, inner_name): (&str, &str),
    nsid: i32,
) -> Result<Link, SetupError> {
    netns::within(node, || {
        let netlink = Netlink::open()?;
        let (here, there) =
            (End { name: outer_name, mac: OUTER_MAC }, End { name: inner_name, mac: INNER_MAC });
        netlink.add_veth(here, there, at)?;
        let outer = netlink.link(outer_name)?.ok_or(io::ErrorKind::NotFound)?;
        netlink.describe(outer.index, ALIAS, DEVICE_MTU, OUTER_MAC)?;
        if netlink.nsid(at)? != Some(nsid) {
            return Err(io::Error::other("the namespace's number does not read back"));
        }
        Ok(outer)
    })
    .map_err(SetupError::cannot(
        format!("create the helper veth {outer_name}"),
        "CAP_NET_ADMIN and the veth module are needed",
    ))
}

/// The longest packet that every pod's device of the node lets through, as far as that can be granted.
///
/// The proxy speaks in the name of both sides, so what it says that it takes is what its peer sends to the pod's
/// address; and that may have to pass the pod's device before a hook sees it: a bridge drops what is too long for a port
/// without a word. One number for all pods: to tell one pod's connections from another's would take a rule for each
/// address, which every look-up of a route would walk.
fn narrowest(node: BorrowedFd<'_>) -> Result<u32, SetupError> {
    let links = netns::within(node, || Netlink::open()?.links())
        .map_err(SetupError::cannot("list the node's devices", "CAP_NET_ADMIN is needed"))?;
    let pods = links.iter().filter(|link| link.is_pods()).map(|link| link.mtu);
    Ok(pods.min().map_or(ROUTE_MTU, |least| least.clamp(LEAST_MTU, ROUTE_MTU)))
}

/// Gives the proxy's namespace its way out; what was not so.
fn default_route(netlink: &Netlink, v6: bool, device: u32, answers: u32) -> io::Result<Option<String>> {
    let via = if v6 { NEXT_HOP_V6 } else { NEXT_HOP_V4 };
    let family = if v6 { "IPv6" } else { "IPv4" };
    let metrics = Metrics::of(v6, ROUTE_MTU, answers);
    let before = netlink.default_route(v6)?;
    if before == Some(metrics) {
        return Ok(None);
    }
    netlink.route(v6, Way::Default { via, device, metrics })?;
    Ok(Some(match before {
        None => format!("the {family} default route of the proxy's namespace was gone"),
        Some(before) => format!(
            "the {family} default route of the proxy's namespace had mtu {} advmss {}, and must have mtu {} advmss {}",
            before.mtu, before.advmss, metrics.mtu, metrics.advmss
        ),
    }))
}

/// Gives an end of the helper what it must have; what was not so.
fn described(netlink: &Netlink, link: &Link, mac: Mac) -> io::Result<Option<String>> {
    if link.mtu == DEVICE_MTU && link.alias == ALIAS && link.mac == Some(mac) {
        return Ok(None);
    }
    netlink.describe(link.index, ALIAS, DEVICE_MTU, mac)?;
    Ok(Some(format!("{} had another MTU, hardware address or alias", link.name)))
}

/// Whether frames that cross a bridge go through the node's netfilter, IPv4 and IPv6. No such sysctl: no.
pub(crate) fn bridge_netfilter(node: BorrowedFd<'_>) -> (bool, bool) {
    let on = |name: &str| sysctl(node, &format!("net/bridge/{name}")).is_ok_and(|value| value == "1");
    (on("bridge-nf-call-iptables"), on("bridge-nf-call-ip6tables"))
}

/// Removes the helper of a node, if it is one.
pub(crate) fn remove(node: &str, node_netns: BorrowedFd<'_>) -> Result<(), SetupError> {
    let (name, _) = names(node);
    let found = netns::within(node_netns, || {
        let netlink = Netlink::open()?;
        let Some(link) = netlink.link(&name)? else { return Ok(None) };
        if link.alias != ALIAS || link.kind != "veth" {
            return Ok(Some(link));
        }
        match netlink.remove(link.index) {
            // Its namespace may be going, and the device with it.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
            other => other.map(|()| None),
        }
    })
    .map_err(SetupError::cannot(format!("replace the device {name}"), "CAP_NET_ADMIN is needed"))?;
    match found {
        None => Ok(()),
        Some(_) => Err(SetupError::Config {
            what: format!("a device named {name} is here and is not the helper of this node"),
            remedy: "choose another node name",
        }),
    }
}

fn sysctl(netns: BorrowedFd<'_>, name: &str) -> Result<String, SetupError> {
    let path = PathBuf::from("/proc/sys").join(name);
    netns::within(netns, || Ok(fs::read_to_string(&path)?.trim().to_owned()))
        .map_err(SetupError::cannot(format!("read the sysctl {name}"), "is /proc mounted?"))
}

/// Writes each that is not so, and reads it back; which they were.
fn sysctls(netns: BorrowedFd<'_>, wanted: &[(String, &str)]) -> Result<Vec<String>, SetupError> {
    let remedy = "mount /proc/sys writable for this process";
    let mut changes = Vec::new();
    for (name, value) in wanted.iter().filter(|(name, _)| has_v6() || !name.starts_with("net/ipv6")) {
        let before = sysctl(netns, name)?;
        if before == *value {
            continue;
        }
        let path = PathBuf::from("/proc/sys").join(name);
        netns::within(netns, || fs::write(&path, value))
            .map_err(SetupError::cannot(format!("set the sysctl {name} to {value}"), remedy))?;
        let found = sysctl(netns, name)?;
        if found != *value {
            let what = format!("the sysctl {name}");
            return Err(SetupError::Unlike { what, found, wanted: (*value).to_owned(), remedy });
        }
        changes.push(format!("the sysctl {name} was {before}, and must be {value}"));
    }
    Ok(changes)
}
