//! What a world shall consist of, and which addresses its parts get.
//!
//! Addresses are the same in every world: each world is namespaces of its own. Knows nothing of how links are
//! made. Called by tests, and by the world builder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most nodes of one world: the third byte of a pod's address.
pub const MAX_NODES: usize = 16;
/// Most pods of one node: the last byte of a pod's address, less the reserved ones.
pub const MAX_PODS: usize = 200;
/// The first pod's last byte; below are the bridge's own address and room for forged ones.
const FIRST_POD: u8 = 10;

/// How a pod's interface meets its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Attach {
    /// A veth with a host route and the gateway 169.254.1.1, as Calico does it.
    #[default]
    Routed,
    /// A veth that is a port of the node's bridge `cni0`, as Flannel does it.
    Bridge,
}

/// How the nodes reach each other's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Overlay {
    /// By plain routes over the underlay, as Calico and host-gw do it.
    #[default]
    Routes,
    /// Through a VXLAN device on each node, with routes and static neighbours over it, as Flannel does it.
    Vxlan {
        /// The device's MTU: 1450 leaves room for the outer headers on an underlay of 1500 (RFC 7348, section 4.3).
        mtu: u32,
    },
}

/// A node to be built.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub(crate) name: String,
    pub(crate) attach: Attach,
    pub(crate) br_netfilter: bool,
    pub(crate) sysctls: Vec<(String, String)>,
}

impl NodeSpec {
    /// A node whose pods are routed.
    #[must_use]
    pub fn routed(name: impl Into<String>) -> Self {
        Self { name: name.into(), attach: Attach::Routed, br_netfilter: false, sysctls: Vec::new() }
    }

    /// A node whose pods are ports of a bridge, `br_netfilter` off.
    #[must_use]
    pub fn bridged(name: impl Into<String>) -> Self {
        Self { attach: Attach::Bridge, ..Self::routed(name) }
    }

    /// Whether bridged frames go through netfilter's IP hooks.
    #[must_use]
    pub fn br_netfilter(mut self, on: bool) -> Self {
        self.br_netfilter = on;
        self
    }

    /// A sysctl of the node's namespace, set once its links are up.
    #[must_use]
    pub fn sysctl(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.sysctls.push((key.into(), value.into()));
        self
    }
}

/// A pod to be built.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(crate) node: String,
    pub(crate) name: String,
    pub(crate) attach: Option<Attach>,
    pub(crate) addresses: Option<(Ipv4Addr, Ipv6Addr)>,
}

impl PodSpec {
    /// A pod `namespace/name` on a node, attached as its node attaches pods.
    #[must_use]
    pub fn new(node: impl Into<String>, name: impl Into<String>) -> Self {
        Self { node: node.into(), name: name.into(), attach: None, addresses: None }
    }

    /// With these addresses instead of ones from its node's range. Its veth is routed.
    #[must_use]
    pub fn addresses(mut self, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        self.addresses = Some((v4, v6));
        self
    }

    /// Attached in another way than the node's other pods.
    #[must_use]
    pub fn attach(mut self, attach: Attach) -> Self {
        self.attach = Some(attach);
        self
    }
}

/// A host outside the cluster, on the link between the nodes.
#[derive(Clone, Debug)]
pub struct OutsideSpec {
    pub(crate) name: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// The addresses of one world, by plain numbering.
pub(crate) mod plan {
    use super::{FIRST_POD, Ipv4Addr, Ipv6Addr};

    /// The MAC of every node-side end, as Calico has it: the pods' link-local gateway follows from it.
    pub(crate) const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
    /// The pods' gateway on a routed veth.
    pub(crate) const GATEWAY_V4: &str = "169.254.1.1";
    /// The link-local address of [`GATEWAY_MAC`].
    pub(crate) const GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";
    /// The underlay's own addresses: the nodes' default gateway.
    pub(crate) const UNDERLAY_V4: &str = "172.31.77.1";
    pub(crate) const UNDERLAY_V6: &str = "fd77:ffff::1";

    pub(crate) fn node_v4(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 77, 11 + small(node))
    }

    pub(crate) fn node_v6(node: usize) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0xffff, 0, 0, 0, 0, 0, 11 + u16::from(small(node)))
    }

    pub(crate) fn range_v4(node: usize) -> String {
        format!("10.77.{}.0/24", small(node) + 1)
    }

    pub(crate) fn range_v6(node: usize) -> String {
        format!("fd77:0:0:{:x}::/64", small(node) + 1)
    }

    pub(crate) fn bridge_v4(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, small(node) + 1, 1)
    }

    pub(crate) fn bridge_v6(node: usize) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, u16::from(small(node)) + 1, 0, 0, 0, 1)
    }

    /// The VXLAN device of a node: an address for the others' routes to go by.
    pub(crate) fn tunnel_v4(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, small(node) + 1, 254)
    }

    pub(crate) fn tunnel_v6(node: usize) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, u16::from(small(node)) + 1, 0, 0, 0, 0xfe)
    }

    pub(crate) fn tunnel_mac(node: usize) -> String {
        format!("0e:77:00:00:00:{:02x}", small(node) + 1)
    }

    pub(crate) fn pod_v4(node: usize, pod: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, small(node) + 1, FIRST_POD + small(pod))
    }

    pub(crate) fn pod_v6(node: usize, pod: usize) -> Ipv6Addr {
        let last = u16::from(FIRST_POD) + u16::from(small(pod));
        Ipv6Addr::new(0xfd77, 0, 0, u16::from(small(node)) + 1, 0, 0, 0, last)
    }

    /// The builder holds nodes and pods to their bounds, so that every index fits.
    fn small(index: usize) -> u8 {
        u8::try_from(index).unwrap_or(u8::MAX)
    }
}

/// The address of one family, for tests that run in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for loops.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The one of two addresses that is of this family.
    #[must_use]
    pub const fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(v4),
            Self::V6 => IpAddr::V6(v6),
        }
    }
}
