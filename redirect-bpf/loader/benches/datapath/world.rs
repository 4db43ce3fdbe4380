//! One node with a client and a server behind routed veths, judged by nothing, by nftables or by us.
//!
//! Every world has namespaces of its own, so that all are up at once and rounds can alternate between them. All goes
//! away with the value. Called by the benchmark.

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TcAttachType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_policy::{
    Class, ClassId, ClassSet, Direction, Endpoint, Identity, IsolatedPorts, Isolation, Kind, Layer, Mode,
    OnDeny, Origin, Policy, PolicyId, PortRange, PortSet, Prefix, Profile, ProfileId, Protocol, Rule, Scope,
    Snapshot, Workload,
};
use sluice_redirect::{EndpointLimits, Node, NodeConfig};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::traffic::PORT;

/// The client's address.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The server's.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);
/// The peers that only the rules know, from here on.
const OTHERS: u32 = 0x0a80_0000;
/// One instruction and the way out: `r0 = 0; exit`.
static EMPTY: &[u8] = aya::include_bytes_aligned!("pass.bpf.o");
/// The peer that is used may be reached on a port from here on as well.
const MORE: u16 = 40_000;
const GATEWAY: &str = "169.254.1.1";
const NODE_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// What judges the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judge {
    /// Nothing.
    Nobody,
    /// nftables on the veths (`netdev` ingress and egress), a rule after the other, without connection tracking.
    NftRules,
    /// nftables where the node forwards: connection tracking, then one look-up in a set.
    NftSet,
    /// Programs that do nothing, at the places of ours: what no program can be had for less than.
    Empty,
    /// Our programs.
    Sluice,
}

impl Judge {
    /// As the table names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nothing attached",
            Self::NftRules => "nft rules on the veth",
            Self::NftSet => "nft ct + set",
            Self::Empty => "programs that do nothing",
            Self::Sluice => "sluice",
        }
    }
}

/// See the file's own words.
pub(crate) struct World {
    prefix: String,
    bpffs: PathBuf,
    /// Where the client is.
    pub(crate) client: File,
    /// Where the server is.
    pub(crate) server: File,
    /// What judges.
    pub(crate) judge: Judge,
    /// How many peers may be reached, on both sides together.
    pub(crate) rules: usize,
    /// How many rows that is in our maps.
    pub(crate) rows: usize,
    /// Our loader, where it judges.
    pub(crate) node: Option<Node>,
    /// The programs that do nothing.
    empty: Option<Ebpf>,
    generation: u64,
}

/// What of the rules is other than at first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    /// The others' addresses: by so much.
    pub(crate) shift: u32,
    /// The classes' numbers, which are in every row: by so much.
    pub(crate) numbers: u32,
    /// One more port of the one that is used.
    pub(crate) port: u16,
}

impl World {
    /// Builds one with so many rules.
    pub(crate) fn build(number: usize, judge: Judge, rules: usize) -> Result<Self> {
        let prefix = format!("slb-{:x}-{number}", std::process::id());
        let bpffs = std::env::temp_dir().join(format!("{prefix}-bpf"));
        links(&prefix)?;
        let open = |role: &str| File::open(format!("/run/netns/{prefix}-{role}"));
        let (client, server) = (open("client")?, open("server")?);
        let (rows, node, empty, generation) = (0, None, None, 0);
        let mut world = Self { prefix, bpffs, client, server, judge, rules, rows, node, empty, generation };
        match judge {
            Judge::Nobody => {}
            Judge::NftRules => world.nft(&one_by_one(rules))?,
            Judge::NftSet => world.nft(&by_set(rules))?,
            Judge::Empty => world.empty = Some(world.inside(attach_empty)??),
            Judge::Sluice => {
                let config = world.config();
                world.node = Some(world.inside(|| Node::open(config))??);
                world.apply(Change::default())?;
            }
        }
        Ok(world)
    }

    fn config(&self) -> NodeConfig {
        unlimited(NodeConfig::new("slb", &self.bpffs, 15_001))
    }

    /// Applies the rules again, as many, but changed; how long it took.
    pub(crate) fn apply(&mut self, change: Change) -> Result<std::time::Duration> {
        self.generation += 1;
        let snapshot = snapshot(self.rules, change, self.generation);
        let start = std::time::Instant::now();
        let applied = self.node.as_mut().context("no loader here")?.apply(&snapshot)?;
        let took = start.elapsed();
        ensure!(applied.missing.is_empty(), "missing: {:?}", applied.missing);
        self.rows = applied.rows;
        Ok(took)
    }

    fn nft(&self, text: &str) -> Result<()> {
        feed(&["ip", "netns", "exec", &format!("{}-node", self.prefix), "nft", "-f", "-"], text)
    }

    /// On a thread in the node's namespace.
    fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> Result<T> {
        within(&File::open(format!("/run/netns/{}-node", self.prefix))?, run)
    }
}

/// As it is run, but that no limit is reached: a limit is asked all the same.
pub(crate) fn unlimited(config: NodeConfig) -> NodeConfig {
    let limits = EndpointLimits {
        ingress_flows: u32::MAX,
        egress_flows: u32::MAX,
        ingress_opens: u32::MAX,
        egress_opens: u32::MAX,
        ..EndpointLimits::default()
    };
    NodeConfig { limits, ..config }
}

/// Runs on a thread in a namespace.
pub(crate) fn within<T: Send>(netns: &File, run: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || -> Result<T> {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(run())
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Drop for World {
    fn drop(&mut self) {
        if self.node.take().is_some() {
            let config = self.config();
            let _ = self.inside(|| Node::uninstall(&config));
            let _ = std::fs::remove_dir(&self.bpffs);
        }
        tear_down(&self.prefix);
    }
}

/// Both hooks of both veths.
fn attach_empty() -> Result<Ebpf> {
    let mut ebpf = Ebpf::load(EMPTY)?;
    let program: &mut SchedClassifier = ebpf.program_mut("pass").context("the program")?.try_into()?;
    program.load()?;
    for device in ["v-client", "v-server"] {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            program.attach(device, side)?;
        }
    }
    Ok(ebpf)
}

/// Deletes the namespaces that there are.
pub(crate) fn tear_down(prefix: &str) {
    for role in ["client", "server", "proxy", "outside", "node"] {
        let name = format!("{prefix}-{role}");
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
}

/// The client, the server and the node between them, with nothing that judges.
pub(crate) fn links(prefix: &str) -> Result<()> {
    let node = format!("{prefix}-node");
    let build = || -> Result<()> {
        for role in ["node", "client", "server"] {
            feed(&["ip", "netns", "add", &format!("{prefix}-{role}")], "")?;
        }
        let mut lines = String::from("link set lo up\n");
        for (role, address) in [("client", CLIENT), ("server", SERVER)] {
            let (pod, mac) = (format!("{prefix}-{role}"), mac(address));
            writeln!(
                lines,
                "link add v-{role} address {NODE_MAC} type veth peer name eth0 address {mac} netns {pod}"
            )?;
            writeln!(lines, "link set v-{role} up")?;
            writeln!(lines, "route add {address}/32 dev v-{role} scope link")?;
            writeln!(lines, "neigh add {address} lladdr {mac} dev v-{role} nud permanent")?;
        }
        feed(&["ip", "-n", &node, "-batch", "-"], &lines)?;
        for (role, address) in [("client", CLIENT), ("server", SERVER)] {
            let pod = format!("{prefix}-{role}");
            let lines = format!(
                "link set lo up\nlink set eth0 up\naddr add {address}/32 dev eth0\n\
                 route add {GATEWAY} dev eth0 scope link\nroute add default via {GATEWAY} dev eth0\n\
                 neigh add {GATEWAY} lladdr {NODE_MAC} dev eth0 nud permanent\n"
            );
            feed(&["ip", "-n", &pod, "-batch", "-"], &lines)?;
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        feed(&["ip", "netns", "exec", &node, "sh", "-c", forward], "")?;
        let ports = "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range; \
            echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse";
        feed(&["ip", "netns", "exec", &format!("{prefix}-client"), "sh", "-c", ports], "")
    };
    build().inspect_err(|_| tear_down(prefix))
}

fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Runs a command with this on its standard input.
pub(crate) fn feed(argv: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {argv:?}"))?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The others of one side: half of the rules are the client's egress, half the server's ingress.
fn others(rules: usize, shift: u32) -> impl Iterator<Item = Ipv4Addr> {
    let count = u32::try_from(rules / 2).unwrap_or(u32::MAX).saturating_sub(1);
    (0..count).map(move |number| Ipv4Addr::from(OTHERS + shift + number))
}

/// The client's egress at its veth's ingress hook and the server's ingress at its veth's egress hook, one after the
/// other, what is used last. Answers pass by their source port: these hooks have no connection tracking.
fn one_by_one(rules: usize) -> String {
    let mut text = String::from("table netdev sluice {\n");
    let sides = [("v-client", "ingress", "daddr", SERVER), ("v-server", "egress", "saddr", CLIENT)];
    for (device, hook, end, peer) in sides {
        let _ = writeln!(
            text,
            "chain {hook} {{ type filter hook {hook} device {device} priority 0; policy drop;"
        );
        let _ = writeln!(text, "ether type arp accept");
        for address in others(rules, 0) {
            let _ = writeln!(text, "ip {end} {address} tcp dport {PORT} accept");
        }
        let _ = writeln!(text, "ip {end} {peer} tcp dport {PORT} accept");
        let _ = writeln!(text, "ip {end} {peer} udp dport {PORT} accept\n}}");
    }
    let sides = [("v-client", "egress", "saddr", SERVER), ("v-server", "ingress", "daddr", CLIENT)];
    for (device, hook, end, peer) in sides {
        let _ = writeln!(
            text,
            "chain back-{hook} {{ type filter hook {hook} device {device} priority 0; policy drop;"
        );
        let _ = writeln!(text, "ether type arp accept");
        let _ = writeln!(text, "ip {end} {peer} meta l4proto {{ tcp, udp }} th sport {PORT} accept\n}}");
    }
    text + "}\n"
}

/// The same where the node forwards, as well as nftables can: what is known by connection tracking passes first, the
/// rest by one look-up.
fn by_set(rules: usize) -> String {
    let mut text = String::from(
        "table ip sluice {\nset rows { type ipv4_addr . ipv4_addr . inet_proto . inet_service; elements = {\n",
    );
    for address in others(rules * 2, 0).chain([SERVER]) {
        let _ = writeln!(text, "{CLIENT} . {address} . tcp . {PORT},");
    }
    let _ = writeln!(text, "{CLIENT} . {SERVER} . udp . {PORT}");
    text += "}\n}\nchain forward { type filter hook forward priority 0; policy drop;\n\
        ct state established,related accept\n\
        ip saddr . ip daddr . meta l4proto . th dport @rows accept\n}\n}\n";
    text
}

/// Our own: both ends isolated in both directions, so that answers pass as answers.
fn snapshot(rules: usize, change: Change, generation: u64) -> Snapshot {
    let mut snapshot = Snapshot { generation, ..Snapshot::default() };
    let Change { shift, numbers, port } = change;
    let class = |identity| Class { identity, cidrs: Vec::new() };
    snapshot.classes.extend([class(Identity::Missing), class(Identity::World)]);
    snapshot.addresses.insert(Prefix::EVERYTHING, ClassId(1));
    // Numbers that nobody has.
    snapshot
        .classes
        .extend((0..numbers).map(|number| class(Identity::Workload(format!("none{number}").into()))));
    let first = 2 + numbers;
    for (address, id) in [CLIENT, SERVER].into_iter().chain(others(rules, shift)).zip(first..) {
        snapshot.classes.push(class(Identity::Workload(format!("w{id}").into())));
        snapshot.addresses.insert(Prefix::host(IpAddr::V4(address)), ClassId(id));
    }
    let filler = first + 2..first + 2 + u32::try_from(others(rules, shift).count()).unwrap_or(0);
    let client = profile(Direction::Egress, ClassId(first + 1), filler.clone(), port);
    let server = profile(Direction::Ingress, ClassId(first), filler, port);
    snapshot.profiles = vec![client, server].into();
    snapshot.endpoints = vec![endpoint("client", CLIENT, 0), endpoint("server", SERVER, 1)].into();
    snapshot
}

/// A pod of the node.
pub(crate) fn endpoint(pod: &str, address: Ipv4Addr, profile: u32) -> Arc<Endpoint> {
    let workload = Workload {
        namespace: "bench".into(),
        pod: pod.into(),
        uid: "".into(),
        service_account: "default".into(),
        node: "node".into(),
    };
    let (workload, profile) = (Arc::new(workload), ProfileId(profile));
    Arc::new(Endpoint { workload, addresses: vec![address.into()], profile })
}

/// The policy that every rule here is of.
pub(crate) fn policy() -> Arc<Policy> {
    Arc::new(Policy {
        id: PolicyId(0),
        origin: Origin { kind: Kind::NetworkPolicy, namespace: "bench".into(), name: "bench".into() },
        mode: Mode::Enforce,
        on_deny: OnDeny::default(),
    })
}

fn profile(direction: Direction, peer: ClassId, filler: std::ops::Range<u32>, port: u16) -> Profile {
    let policy = policy();
    let isolation = Isolation { policy: Arc::clone(&policy), ports: IsolatedPorts::All };
    let mut profile = Profile::default();
    profile.ingress.layers[0].isolation.push(isolation.clone());
    profile.egress.layers[0].isolation.push(isolation);
    let layer: &mut Layer = match direction {
        Direction::Ingress => &mut profile.ingress.layers[0],
        Direction::Egress => &mut profile.egress.layers[0],
    };
    let range = |protocol, port| PortRange { protocol, first: port, last: port };
    let mut rule = |peers: ClassSet, ports: Vec<PortRange>, name: &str| {
        layer.allow.push(Rule {
            policy: Arc::clone(&policy),
            name: name.into(),
            scopes: vec![Scope { peers, ports: PortSet::Ranges(ports) }],
            conditions: None,
        });
    };
    let used =
        vec![range(Protocol::Tcp, PORT), range(Protocol::Udp, PORT), range(Protocol::Tcp, MORE + port)];
    rule(ClassSet::of([peer]), used, "peer");
    rule(ClassSet::of(filler.map(ClassId)), vec![range(Protocol::Tcp, PORT)], "others");
    profile
}
