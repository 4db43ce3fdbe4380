//! Makes a world's links, addresses and routes.
//!
//! Nodes meet on a bridge in the underlay's namespace, with plain routes for each other's pods or with VXLAN
//! devices; no address is translated anywhere. Knows nothing of the product. Called by the world alone.

use super::spec::plan;
use super::{
    Attach, MAX_PODS, Netns, Node, NodeSpec, OutsideSpec, Overlay, Pod, PodSpec, World, WorldBuilder, netns,
};
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// Longest name of a network interface (`IFNAMSIZ` less the closing zero).
const MAX_LINK_NAME: usize = 15;
/// The VXLAN device of a node, and its port: Linux's own default, which Flannel keeps.
const TUNNEL: &str = "vxlan.1";
const TUNNEL_PORT: u16 = 8472;
/// No address waits for duplicate detection: packets flow at once.
const NO_DAD: [(&str, &str); 2] =
    [("net.ipv6.conf.all.accept_dad", "0"), ("net.ipv6.conf.default.accept_dad", "0")];

pub(super) fn build(world: &mut World, builder: &WorldBuilder) -> Result<()> {
    world.underlay.sysctl(&NO_DAD)?;
    world.underlay.ip_batch(&[
        "link set lo up".to_owned(),
        "link add br0 type bridge".to_owned(),
        format!("addr add {}/24 dev br0", plan::UNDERLAY_V4),
        format!("addr add {}/64 dev br0 nodad", plan::UNDERLAY_V6),
        "link set br0 up".to_owned(),
    ])?;
    // Without br_netfilter in the kernel the bridge never asks netfilter: nothing to switch off.
    let _ = world.underlay.sysctl(&bridge_netfilter(false));
    for spec in &builder.nodes {
        add_node(world, spec)?;
    }
    for spec in &builder.pods {
        add_pod(world, spec)?;
    }
    for spec in &builder.outside {
        add_outside(world, spec)?;
    }
    Ok(())
}

fn bridge_netfilter(on: bool) -> [(&'static str, &'static str); 3] {
    let value = if on { "1" } else { "0" };
    [
        ("net.bridge.bridge-nf-call-iptables", value),
        ("net.bridge.bridge-nf-call-ip6tables", value),
        ("net.bridge.bridge-nf-call-arptables", value),
    ]
}

fn add_node(world: &mut World, spec: &NodeSpec) -> Result<()> {
    let index = world.nodes.len();
    let netns = Netns::create(format!("{}-{}", world.prefix, spec.name))?;
    netns.sysctl(&NO_DAD)?;
    let (v4, v6) = (plan::node_v4(index), plan::node_v6(index));
    world.underlay.ip_batch(&[
        format!("link add n{index} type veth peer name eth0 netns {}", netns.name()),
        format!("link set n{index} master br0 up"),
    ])?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {}", plan::UNDERLAY_V4),
        format!("route add default via {}", plan::UNDERLAY_V6),
    ];
    if spec.attach == Attach::Bridge {
        lines.extend([
            "link add cni0 type bridge".to_owned(),
            format!("addr add {}/24 dev cni0", plan::bridge_v4(index)),
            format!("addr add {}/64 dev cni0 nodad", plan::bridge_v6(index)),
            "link set cni0 up".to_owned(),
        ]);
    }
    netns.ip_batch(&lines)?;
    netns.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
    let bridged = netns.sysctl(&bridge_netfilter(spec.br_netfilter));
    ensure!(!spec.br_netfilter || bridged.is_ok(), "this kernel has no br_netfilter: {bridged:?}");
    let settings: Vec<(&str, &str)> = spec.sysctls.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    netns.sysctl(&settings)?;
    let bpffs = world.dir.join(format!("bpf-{}", spec.name));
    std::fs::create_dir_all(&bpffs)?;
    netns::run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs))
        .context("cannot mount a bpffs for the node")?;
    let node = Node {
        name: spec.name.clone(),
        netns,
        v4,
        v6,
        pods_v4: plan::range_v4(index),
        pods_v6: plan::range_v6(index),
        attach: spec.attach,
        bpffs,
    };
    join_nodes(world, &node)?;
    world.nodes.push(node);
    Ok(())
}

/// Ways between a new node and those that are there.
fn join_nodes(world: &World, node: &Node) -> Result<()> {
    if let Overlay::Vxlan { mtu } = world.overlay {
        return join_by_vxlan(world, node, mtu);
    }
    let mut lines = Vec::new();
    for other in &world.nodes {
        lines.extend(routes_to(other));
        other.netns.ip_batch(&routes_to(node))?;
    }
    node.netns.ip_batch(&lines)
}

fn join_by_vxlan(world: &World, node: &Node, mtu: u32) -> Result<()> {
    let index = world.nodes.len();
    let (v4, v6, mac) = (plan::tunnel_v4(index), plan::tunnel_v6(index), plan::tunnel_mac(index));
    node.netns.ip_batch(&[
        format!(
            "link add {TUNNEL} address {mac} type vxlan id 1 dev eth0 local {} dstport {TUNNEL_PORT} nolearning",
            node.v4
        ),
        format!("addr add {v4}/32 dev {TUNNEL}"),
        format!("addr add {v6}/128 dev {TUNNEL} nodad"),
        format!("link set {TUNNEL} mtu {mtu} up"),
    ])?;
    for (other, at) in world.nodes.iter().zip(0..) {
        tunnel_to(&other.netns, node, index)?;
        tunnel_to(&node.netns, other, at)?;
    }
    Ok(())
}

/// Static neighbours and routes: nothing is learnt and nothing is flooded.
fn tunnel_to(from: &Netns, node: &Node, index: usize) -> Result<()> {
    let (v4, v6, mac) = (plan::tunnel_v4(index), plan::tunnel_v6(index), plan::tunnel_mac(index));
    from.run(&["bridge", "fdb", "append", &mac, "dev", TUNNEL, "dst", &node.v4.to_string()])?;
    from.ip_batch(&[
        format!("neigh add {v4} lladdr {mac} dev {TUNNEL} nud permanent"),
        format!("neigh add {v6} lladdr {mac} dev {TUNNEL} nud permanent"),
        format!("route add {} via {v4} dev {TUNNEL} onlink", node.pods_v4),
        format!("route add {} via {v6} dev {TUNNEL} onlink", node.pods_v6),
    ])
}

fn routes_to(node: &Node) -> [String; 2] {
    [
        format!("route add {} via {} dev eth0", node.pods_v4, node.v4),
        format!("route add {} via {} dev eth0", node.pods_v6, node.v6),
    ]
}

pub(super) fn add_pod(world: &mut World, spec: &PodSpec) -> Result<()> {
    let index = world.nodes.iter().position(|node| node.name == spec.node);
    let index = index.with_context(|| format!("pod {} is on no node", spec.name))?;
    let node = world.nodes[index].clone();
    let used = world.pods.iter().filter(|pod| pod.node == spec.node);
    // The number is the name's beginning as well as the address's end.
    let taken: Vec<&str> =
        used.filter_map(|pod| pod.veth.split_once('-')).map(|(number, _)| number).collect();
    let number = (0..MAX_PODS).find(|number| !taken.contains(&format!("v{number}").as_str()));
    let number = number.with_context(|| format!("at most {MAX_PODS} pods on a node"))?;
    let attach = spec.attach.unwrap_or(node.attach);
    let netns = Netns::create(format!("{}-{}", world.prefix, spec.name.replace('/', "-")))?;
    let mut veth = format!("v{number}-{}", spec.name.rsplit('/').next().unwrap_or_default());
    veth.truncate(MAX_LINK_NAME);
    let planned = (plan::pod_v4(index, number), plan::pod_v6(index, number));
    let (v4, v6) = spec.addresses.unwrap_or(planned);
    let pod = Pod {
        name: spec.name.clone(),
        node: spec.node.clone(),
        netns,
        v4,
        v6,
        veth,
        attach,
        serial: world.made,
    };
    world.made += 1;
    pod.netns.sysctl(&NO_DAD)?;
    match attach {
        Attach::Routed => attach_routed(&node, &pod)?,
        Attach::Bridge => attach_bridged(&node, &pod, index)?,
    }
    if spec.addresses.is_some() {
        route_to_pod(world, &node, &pod)?;
    }
    if let Some(mtu) = world.pod_mtu {
        node.netns.ip_batch(&[format!("link set {} mtu {mtu}", pod.veth)])?;
        pod.netns.ip_batch(&[format!("link set eth0 mtu {mtu}")])?;
    }
    world.pods.push(pod);
    Ok(())
}

/// The other nodes' way to a pod whose addresses are not of its node's range.
fn route_to_pod(world: &World, node: &Node, pod: &Pod) -> Result<()> {
    ensure!(pod.attach == Attach::Routed, "pod {} has its own addresses: its veth must be routed", pod.name);
    let lines = [
        format!("route replace {}/32 via {} dev eth0", pod.v4, node.v4),
        format!("route replace {}/128 via {} dev eth0", pod.v6, node.v6),
    ];
    let others = world.nodes.iter().filter(|other| other.name != node.name);
    others.map(|other| &other.netns).try_for_each(|netns| netns.ip_batch(&lines))
}

fn attach_routed(node: &Node, pod: &Pod) -> Result<()> {
    let (veth, peer) = (&pod.veth, pod.netns.name());
    node.netns.ip_batch(&[
        format!("link add {veth} address {} type veth peer name eth0 netns {peer}", plan::GATEWAY_MAC),
        format!("link set {veth} up"),
    ])?;
    pod.netns.ip_batch(&[
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("addr add {}/32 dev eth0", pod.v4),
        format!("addr add {}/128 dev eth0 nodad", pod.v6),
        format!("route add {} dev eth0 scope link", plan::GATEWAY_V4),
        format!("route add default via {} dev eth0", plan::GATEWAY_V4),
        format!("route add default via {} dev eth0", plan::GATEWAY_V6),
    ])?;
    // The node answers for 169.254.1.1, and at once.
    node.netns.sysctl(&[
        (format!("net.ipv4.conf.{veth}.proxy_arp"), "1"),
        (format!("net.ipv4.neigh.{veth}.proxy_delay"), "0"),
    ])?;
    node.netns.ip_batch(&[
        format!("route add {}/32 dev {veth} scope link", pod.v4),
        format!("route add {}/128 dev {veth}", pod.v6),
    ])
}

fn attach_bridged(node: &Node, pod: &Pod, index: usize) -> Result<()> {
    ensure!(node.attach == Attach::Bridge, "node {} has no bridge for pod {}", node.name, pod.name);
    let (veth, peer) = (&pod.veth, pod.netns.name());
    node.netns.ip_batch(&[
        format!("link add {veth} type veth peer name eth0 netns {peer}"),
        format!("link set {veth} master cni0 up"),
    ])?;
    pod.netns.ip_batch(&[
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("addr add {}/24 dev eth0", pod.v4),
        format!("addr add {}/64 dev eth0 nodad", pod.v6),
        format!("route add default via {} dev eth0", plan::bridge_v4(index)),
        format!("route add default via {} dev eth0", plan::bridge_v6(index)),
    ])
}

fn add_outside(world: &mut World, spec: &OutsideSpec) -> Result<()> {
    let netns = Netns::create(format!("{}-{}", world.prefix, spec.name))?;
    netns.sysctl(&NO_DAD)?;
    let veth = format!("o{}", world.outside.len());
    world.underlay.ip_batch(&[
        format!("link add {veth} type veth peer name eth0 netns {}", netns.name()),
        format!("link set {veth} master br0 up"),
    ])?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("addr add {}/32 dev eth0", spec.v4),
        format!("addr add {}/128 dev eth0 nodad", spec.v6),
        "route add 172.31.77.0/24 dev eth0".to_owned(),
        "route add fd77:ffff::/64 dev eth0".to_owned(),
    ];
    lines.extend(world.nodes.iter().flat_map(routes_to));
    netns.ip_batch(&lines)?;
    for node in &world.nodes {
        node.netns.ip_batch(&[
            format!("route add {}/32 dev eth0", spec.v4),
            format!("route add {}/128 dev eth0", spec.v6),
        ])?;
    }
    world.outside.push(Pod {
        name: spec.name.clone(),
        node: String::new(),
        netns,
        v4: spec.v4,
        v6: spec.v6,
        veth,
        attach: Attach::Bridge,
        serial: world.made,
    });
    world.made += 1;
    Ok(())
}
