//! A node, its pods, a host elsewhere, and the proxy in one of the two places. All goes away with the value.
//!
//! Knows nothing of what is measured. Called by the trial of the arrangements.

use super::habit::{Ends, Habit, LOCAL_MARK, Sockets};
use crate::relay::listen;
use crate::traffic::PORT;
use crate::world::{CLIENT, SERVER, feed, links, tear_down, within};
use crate::{trials, world};
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, Pod};
use sluice_policy::http::HttpMatch;
use sluice_policy::{
    Class, ClassId, ClassSet, Conditions, Identity, IsolatedPorts, Isolation, PortRange, PortSet, Prefix,
    Profile, Protocol, Rule, Scope, Snapshot,
};
use sluice_redirect::{Node, NodeConfig};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

/// The proxy's listener.
const LISTENER: u16 = 15_001;
/// The proxy's own packets, where its sockets are in the node's namespace.
const OWN_MARK: u32 = 0x5101;
/// The host elsewhere, by the plain network.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The same through the tunnel.
const TUNNELLED: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
const OUTER_MAC: &str = "02:53:4c:55:00:01";
const NEXT_HOP: &str = "169.254.83.76";

/// See the file's own words.
pub(crate) struct Stage {
    prefix: String,
    bpffs: PathBuf,
    pub(crate) sockets: Sockets,
    pub(crate) ends: Ends,
    pub(crate) habit: Habit,
    /// Where the client is.
    pub(crate) client: File,
    /// Where the server is.
    pub(crate) server: File,
    /// The server's address.
    pub(crate) target: Ipv4Addr,
    /// The client's.
    pub(crate) source: Ipv4Addr,
    /// The proxy's listener and namespace.
    pub(crate) proxy: Option<(TcpListener, File)>,
    _ebpf: Option<Ebpf>,
    shipped: Option<Node>,
}

/// As the programs read it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Settings {
    helper: u32,
    outer: u32,
    own_mark: u32,
    local_mark: u32,
    port: [u8; 2],
    listener: [u8; 2],
}

// SAFETY: words and bytes without padding; every pattern of bits is one.
unsafe impl Pod for Settings {}

impl Stage {
    /// Builds one.
    pub(crate) fn build(number: usize, sockets: Sockets, ends: Ends, habit: Habit) -> Result<Self> {
        let prefix = format!("sla-{:x}-{number}", std::process::id());
        let bpffs = std::env::temp_dir().join(format!("{prefix}-bpf"));
        links(&prefix)?;
        let elsewhere = if habit.tunnels() { TUNNELLED } else { OUTSIDE };
        let (source, target) = match ends {
            Ends::Local => (CLIENT, SERVER),
            Ends::Ingress => (elsewhere, SERVER),
            Ends::Egress => (CLIENT, elsewhere),
        };
        let open = |role: &str| File::open(format!("/run/netns/{prefix}-{role}"));
        let mut stage = Self {
            client: open("client")?,
            server: open("server")?,
            sockets,
            ends,
            habit,
            target,
            source,
            proxy: None,
            _ebpf: None,
            shipped: None,
            bpffs,
            prefix,
        };
        stage.outside()?;
        stage.inside("node", &habit.sysctls(sockets))?;
        match sockets {
            Sockets::Nowhere => {}
            Sockets::Within => stage.within()?,
            Sockets::Apart => stage.apart()?,
            Sockets::Shipped => stage.ship()?,
        }
        let rules = habit.nft(sockets);
        feed(&["ip", "netns", "exec", &stage.name("node"), "nft", "-f", "-"], &rules)?;
        Ok(stage)
    }

    /// As messages name it.
    pub(crate) fn shown(&self) -> String {
        format!("{}, {}, {}", self.sockets.name(), self.ends.name(), self.habit.name())
    }

    /// The mark of the proxy's own connections.
    pub(crate) const fn mark(&self) -> u32 {
        if matches!(self.sockets, Sockets::Within) { OWN_MARK } else { 0 }
    }

    fn name(&self, role: &str) -> String {
        format!("{}-{role}", self.prefix)
    }

    fn netns(&self, role: &str) -> Result<File> {
        Ok(File::open(format!("/run/netns/{}", self.name(role)))?)
    }

    fn ip(&self, role: &str, lines: &str) -> Result<()> {
        feed(&["ip", "-n", &self.name(role), "-batch", "-"], lines)
    }

    fn inside(&self, role: &str, script: &str) -> Result<()> {
        feed(&["ip", "netns", "exec", &self.name(role), "sh", "-e"], script)
    }

    /// A host that is no pod of the node, by cable or by tunnel.
    fn outside(&mut self) -> Result<()> {
        if self.ends == Ends::Local {
            return Ok(());
        }
        feed(&["ip", "netns", "add", &self.name("outside")], "")?;
        let outside = self.name("outside");
        self.ip(
            "node",
            &format!(
                "link add uplink type veth peer name eth0 netns {outside}\nlink set uplink up\n\
                 addr add 192.0.2.1/24 dev uplink\n"
            ),
        )?;
        self.ip(
            "outside",
            &format!(
                "link set lo up\nlink set eth0 up\naddr add {OUTSIDE}/24 dev eth0\nroute add default via 192.0.2.1\n"
            ),
        )?;
        if self.habit.tunnels() {
            let tunnel = |from: &str, to: &str, own: &str| {
                format!(
                    "link add vxlan0 type vxlan id 42 local {from} remote {to} dstport 4789\nlink set vxlan0 up\n\
                     addr add {own}/24 dev vxlan0\n"
                )
            };
            self.ip("node", &tunnel("192.0.2.1", "192.0.2.2", "10.98.0.1"))?;
            let own = tunnel("192.0.2.2", "192.0.2.1", "10.98.0.2");
            self.ip("outside", &format!("{own}route add 10.99.0.0/24 via 10.98.0.1 dev vxlan0\n"))?;
        }
        let ports = "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range\n\
            echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse\n";
        self.inside("outside", ports)?;
        let there = self.netns("outside")?;
        if self.ends == Ends::Ingress {
            self.client = there;
        } else {
            self.server = there;
        }
        Ok(())
    }

    /// The devices that have hooks A and B.
    fn hooked(&self) -> Vec<&'static str> {
        match self.ends {
            Ends::Local => vec!["v-client", "v-server"],
            Ends::Ingress => vec!["v-server"],
            Ends::Egress => vec!["v-client"],
        }
    }

    fn uplink(&self) -> &'static str {
        if self.habit.tunnels() { "vxlan0" } else { "uplink" }
    }

    fn apart(&mut self) -> Result<()> {
        feed(&["ip", "netns", "add", &self.name("proxy")], "")?;
        let proxy = self.name("proxy");
        self.ip(
            "node",
            &format!(
                "link add outer address {OUTER_MAC} mtu 65535 type veth peer name inner mtu 65535 netns {proxy}\n\
                 link set outer up\n"
            ),
        )?;
        self.ip(
            "proxy",
            &format!(
                "link set lo up\nlink set inner up\nneigh add {NEXT_HOP} lladdr {OUTER_MAC} dev inner nud permanent\n\
                 rule add iif inner lookup 100 priority 100\nroute add local default dev lo table 100\n\
                 route add default via {NEXT_HOP} dev inner onlink mtu 1500\n"
            ),
        )?;
        self.inside(
            "proxy",
            "for i in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $i; done\n\
             echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets\n",
        )?;
        let (node, inside) = (self.netns("node")?, self.netns("proxy")?);
        let mut ebpf = trials()?;
        let hooked = self.hooked();
        within(&node, || {
            let outer = index("outer")?;
            configure(&mut ebpf, outer, outer, &hooked)?;
            attach(&mut ebpf, "apart_outer", "outer", TcAttachType::Ingress)?;
            for device in hooked {
                attach(&mut ebpf, "apart_pod", device, TcAttachType::Ingress)?;
                attach(&mut ebpf, "apart_pod", device, TcAttachType::Egress)?;
            }
            anyhow::Ok(())
        })??;
        let listener = within(&inside, || {
            attach(&mut ebpf, "apart_inner", "inner", TcAttachType::Ingress)?;
            listen(SocketAddr::from((Ipv4Addr::LOCALHOST, LISTENER)), 0)
        })??;
        self.loose("outer")?;
        (self._ebpf, self.proxy) = (Some(ebpf), Some((listener, inside)));
        Ok(())
    }

    fn within(&mut self) -> Result<()> {
        self.ip(
            "node",
            &format!(
                "link add outer mtu 65535 type veth peer name inner mtu 65535\nlink set outer up\nlink set inner up\n\
                 rule add fwmark {LOCAL_MARK} lookup 100 priority 100\nroute add local default dev lo table 100\n"
            ),
        )?;
        let node = self.netns("node")?;
        let mut ebpf = trials()?;
        let (hooked, uplink, egress) = (self.hooked(), self.uplink(), self.ends == Ends::Egress);
        let listener = within(&node, || {
            configure(&mut ebpf, index("outer")?, 0, &hooked)?;
            attach(&mut ebpf, "within_inner", "inner", TcAttachType::Ingress)?;
            for device in hooked {
                attach(&mut ebpf, "within_from_pod", device, TcAttachType::Ingress)?;
                attach(&mut ebpf, "within_to_pod", device, TcAttachType::Egress)?;
            }
            if egress {
                attach(&mut ebpf, "within_uplink", uplink, TcAttachType::Egress)?;
            }
            listen(SocketAddr::from((Ipv4Addr::LOCALHOST, LISTENER)), OWN_MARK)
        })??;
        self.loose("inner")?;
        (self._ebpf, self.proxy) = (Some(ebpf), Some((listener, node)));
        Ok(())
    }

    /// What comes in by the helper has anybody's source; as the loader has it.
    fn loose(&self, device: &str) -> Result<()> {
        self.ip("node", &format!("addr add 169.254.83.77/32 dev {device} scope host\n"))?;
        self.inside(
            "node",
            &format!(
                "cd /proc/sys/net/ipv4/conf\n[ $(cat all/rp_filter) = 0 ] || echo 2 > {device}/rp_filter\n\
                 echo 1 > {device}/accept_local\n"
            ),
        )
    }

    fn config(&self) -> NodeConfig {
        world::unlimited(NodeConfig::new("sla", &self.bpffs, LISTENER))
    }

    fn ship(&mut self) -> Result<()> {
        let config = self.config();
        let ends = self.ends;
        let (node, listener, netns) = within(&self.netns("node")?, || {
            let mut node = Node::open(config)?;
            let applied = node.apply(&snapshot(ends))?;
            ensure!(applied.missing.is_empty(), "missing: {:?}", applied.missing);
            let listener = node.listeners()?.into_iter().next().context("no listener")?;
            let netns = node.proxy_netns().try_clone_to_owned()?;
            Ok((node, listener, netns))
        })??;
        (self.shipped, self.proxy) = (Some(node), Some((listener, netns.into())));
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.shipped.take().is_some() {
            let config = self.config();
            let _ = self.netns("node").and_then(|node| within(&node, || Node::uninstall(&config)));
            let _ = std::fs::remove_dir(&self.bpffs);
        }
        tear_down(&self.prefix);
    }
}

/// A device's number, in the namespace of this thread.
fn index(device: &str) -> Result<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::netdevice::name_to_index(socket, device).with_context(|| format!("no device {device}"))
}

fn configure(ebpf: &mut Ebpf, helper: u32, outer: u32, hooked: &[&str]) -> Result<()> {
    let settings = Settings {
        helper,
        outer,
        own_mark: OWN_MARK,
        local_mark: LOCAL_MARK,
        port: PORT.to_be_bytes(),
        listener: LISTENER.to_be_bytes(),
    };
    let mut map: Array<_, Settings> = Array::try_from(ebpf.map_mut("SETTINGS").context("SETTINGS")?)?;
    map.set(0, settings, 0)?;
    let mut devices: HashMap<_, [u8; 4], u32> =
        HashMap::try_from(ebpf.map_mut("DEVICES").context("DEVICES")?)?;
    for device in hooked {
        let address = if *device == "v-client" { CLIENT } else { SERVER };
        devices.insert(address.octets(), index(device)?, 0)?;
    }
    Ok(())
}

fn attach(ebpf: &mut Ebpf, program: &str, device: &str, side: TcAttachType) -> Result<()> {
    let found: &mut SchedClassifier =
        ebpf.program_mut(program).with_context(|| program.to_owned())?.try_into()?;
    if found.fd().is_err() {
        found.load()?;
    }
    found.attach(device, side).with_context(|| format!("{program} at {device}"))?;
    Ok(())
}

/// Every connection between the two is judged by request.
fn snapshot(ends: Ends) -> Snapshot {
    let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
    let class = |identity| Class { identity, cidrs: Vec::new() };
    snapshot.classes.extend([class(Identity::Missing), class(Identity::World)]);
    snapshot.addresses.insert(Prefix::EVERYTHING, ClassId(1));
    let pods: &[(&str, Ipv4Addr)] = match ends {
        Ends::Local => &[("client", CLIENT), ("server", SERVER)],
        Ends::Ingress => &[("server", SERVER)],
        Ends::Egress => &[("client", CLIENT)],
    };
    for ((name, address), id) in pods.iter().zip(2..) {
        snapshot.classes.push(class(Identity::Workload((*name).into())));
        snapshot.addresses.insert(Prefix::host(IpAddr::V4(*address)), ClassId(id));
    }
    snapshot.profiles = vec![judged_by_request()].into();
    let endpoints = pods.iter().map(|(name, address)| world::endpoint(name, *address, 0));
    snapshot.endpoints = endpoints.collect::<Vec<_>>().into();
    snapshot
}

fn judged_by_request() -> Profile {
    let policy = world::policy();
    let mut profile = Profile::default();
    for side in [&mut profile.ingress, &mut profile.egress] {
        let isolation = Isolation { policy: Arc::clone(&policy), ports: IsolatedPorts::All };
        side.layers[1].isolation.push(isolation);
        let ports = PortSet::Ranges(vec![PortRange { protocol: Protocol::Tcp, first: PORT, last: PORT }]);
        let conditions = Conditions { http: vec![HttpMatch::default()], ..Conditions::default() };
        side.layers[1].allow.push(Rule {
            policy: Arc::clone(&policy),
            name: "l7".into(),
            scopes: vec![Scope { peers: ClassSet::of((1..4).map(ClassId)), ports }],
            conditions: Some(Arc::new(conditions)),
        });
    }
    profile
}
