//! The short way of a known flow: that it is taken, that it lets nothing pass that the long way would not, and that it
//! ends when it must.
//!
//! Reads and writes the flow table behind the programs' back: an entry whose words for the short way are wiped sends its
//! packets the long way, so that the same frame goes both.

use crate::forge::{self, ipv4};
use crate::frames::{self, Tap, Wire, frame, kind, packet, tcp, udp};
use crate::fuzz::{BESIDE, Random, mutate, seed};
use crate::peers::{Connection, SOON, Server, UdpServer, datagram, eventually};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{closed, egress, ingress, tcp as tcp_ports, udp as udp_port};
use crate::v3;
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{ABI_VERSION, Counter, Counters};
use sluice_tests::NodeSpec;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{IpAddr, SocketAddr};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("short: a known flow is on it, at each hook by itself", [Need::Bpf], taken),
        harness::test("short: a source forged by another device", [Need::Bpf], forged_source),
        harness::test("short: another hardware address", [Need::Bpf], forged_mac),
        harness::test("short: a flow that is revoked", [Need::Bpf], revoked),
        harness::test("short: the proxy dials on the same ports", [Need::Bpf], upstream),
        harness::test("short: to a node's tunnel", [Need::Bpf], tunnel),
        harness::test("short: a socket of the node", [Need::Bpf], of_the_node),
        harness::test("short: every frame fares as on the long way", [Need::Bpf], both_ways),
    ]
}

/// Frames that are tried in each direction of each flow.
const FRAMES: usize = 250;
/// What hosts say meanwhile: neighbours' talk, the node's ICMP errors within its own limit, and the fence.
const OTHERS: [Counter; 3] = [Counter::Neighbour, Counter::Host, Counter::NotIp];
/// A flow's entry, and its key, as the ABI has them.
const KEY: usize = 44;
const ENTRY: usize = 48;
const SEEN: std::ops::Range<usize> = 8..16;
const STATE: usize = 16;
const LIFE: usize = 18;
const FAST: std::ops::Range<usize> = 24..32;
/// Where a key has its protocol, its kind and its ports.
const KIND: usize = 4;
const PROTOCOL: usize = 5;
const PORTS: usize = 40;
/// The words of an entry, by hook.
const B: usize = 0;
const A: usize = 1;

type Key = [u8; KEY];
type Entry = [u8; ENTRY];

/// The flow table of `n1`.
struct Table {
    flows: HashMap<MapData, Key, Entry>,
    epoch: Array<MapData, u64>,
}

impl Table {
    fn open(rig: &Rig) -> Result<Self> {
        let maps = rig.config("n1").bpffs.join(format!("v{ABI_VERSION}/maps"));
        let map = |name: &str| -> Result<MapData> { Ok(MapData::from_pin(maps.join(name))?) };
        let flows = Map::from_map_data(map("FLOWS")?)?.try_into()?;
        Ok(Self { flows, epoch: Map::from_map_data(map("EPOCH")?)?.try_into()? })
    }

    /// Forgets all: the flows of the other family have the same ports.
    fn clear(&mut self) {
        let keys: Vec<Key> = self.flows.keys().filter_map(Result::ok).collect();
        for key in keys {
            let _ = self.flows.remove(&key);
        }
    }

    /// The flows of a device with this port at either end, with their keys.
    fn of(&self, device: u32, protocol: u8, port: u16) -> Vec<(Key, Entry)> {
        let ports = |key: &Key| key[PORTS..].chunks(2).any(|bytes| bytes == port.to_be_bytes());
        let ours = |key: &Key| key[..4] == device.to_ne_bytes() && key[PROTOCOL] == protocol && ports(key);
        self.flows.iter().filter_map(Result::ok).filter(|(key, _)| ours(key)).collect()
    }

    /// Whether a hook has let a flow on the short way in this epoch.
    fn is_short(&self, entry: &Entry, hook: usize) -> Result<bool> {
        let epoch = self.epoch.get(&0, 0)? as u32;
        Ok(entry[FAST][hook * 4..][..4] == epoch.to_ne_bytes())
    }

    /// The one flow of a device that goes by this port, which must be on the short way at these hooks.
    fn short(&self, device: u32, protocol: u8, port: u16, hooks: &[usize]) -> Result<(Key, Entry)> {
        let found = self.of(device, protocol, port);
        let [(key, entry)] = found.as_slice() else {
            anyhow::bail!("{} flows of device {device} by port {port}: {found:?}", found.len());
        };
        for hook in hooks {
            ensure!(self.is_short(entry, *hook)?, "hook {hook} of device {device} is not short: {entry:?}");
        }
        Ok((*key, *entry))
    }
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn device(rig: &Rig, pod: &str) -> Result<u32> {
    v3::index(&rig.world, "n1", &rig.pod(pod).veth)
}

/// Both ends closed but to each other, so that an answer passes as one or not at all.
fn pair() -> Vec<crate::rules::Line> {
    vec![
        egress("a/client", "a/server", tcp_ports(80, 81)),
        egress("a/client", "a/server", udp_port(53)),
        egress("a/client", "b/remote", udp_port(53)),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "a/client", tcp_ports(80, 81)),
        ingress("a/server", "a/client", udp_port(53)),
        closed("a/server", Direction::Egress),
    ]
}

/// Words there and back, until every hook knows the flow.
fn speak(connection: &mut Connection) -> Result<()> {
    (0..4).try_for_each(|_| connection.echo("words", SOON))
}

fn taken() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&pair())?;
    let table = Table::open(&rig)?;
    let (client, server) = (device(&rig, "a/client")?, device(&rig, "a/server")?);
    for family in Family::BOTH {
        let target = rig.at("a/server", family, 80);
        let listener = Server::start(&rig.pod("a/server").netns, 80)?;
        let mut connection = Connection::open(&rig.pod("a/client").netns, target)?;
        speak(&mut connection)?;
        let port = connection.local()?.port();
        for at in [client, server] {
            table.short(at, frames::TCP, port, &[A, B])?;
        }
        // Another generation, and each hook has to look again. Not at the first try, if a late ACK came just after it.
        eventually("no hook is short under another generation", || {
            rig.apply(&pair())?;
            for (at, hook) in [(client, A), (client, B), (server, A), (server, B)] {
                let (_, entry) = table.short(at, frames::TCP, port, &[])?;
                if table.is_short(&entry, hook)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        speak(&mut connection)?;
        table.short(client, frames::TCP, port, &[A, B])?;
        drop((connection, listener));
    }
    // That it is taken: what hook A would never let pass does, because an entry says that it did.
    let (src, dst) = (rig.pod(OUTSIDE).v4, rig.pod("a/server").v4);
    let from = SocketAddr::new(rig.pod("a/client").v4.into(), 4000);
    let to = SocketAddr::new(dst.into(), 53);
    let _server = UdpServer::start(&rig.pod("a/server").netns, to)?;
    ensure!(datagram(&rig.pod("a/client").netns, from, to, SOON)?, "the flow");
    ensure!(datagram(&rig.pod("a/client").netns, from, to, SOON)?, "the flow");
    let (mut key, mut entry) = table.short(client, frames::UDP, 4000, &[A])?;
    key[8 + 12..8 + 16].copy_from_slice(&src.octets());
    let mut table = table;
    let forged = ipv4(src, dst, frames::UDP, 64, &udp(SocketAddr::new(src.into(), 4000), to, b"x"));
    for (granted, counter) in [(true, Counter::Known), (false, Counter::Spoofed)] {
        if !granted {
            entry[FAST].fill(0);
        }
        entry[SEEN].copy_from_slice(&now().to_ne_bytes());
        table.flows.insert(key, entry, 0)?;
        let before = rig.counters()?;
        rig.pod("a/client").netns.inside(|| forge::raw(dst.into(), &forged))??;
        eventually("counted", || Ok(rig.counters()?.get(counter) > before.get(counter)))
            .with_context(|| format!("granted: {granted}"))?;
    }
    Ok(())
}

/// A bridge with a port that no endpoint has.
fn bridged() -> Result<(Rig, Wire)> {
    let rig = Rig::with(NodeSpec::bridged("n1"))?;
    rig.world.node("n1").netns.ip_batch(&[
        "link add rogue0 type veth peer name rogue1".to_owned(),
        "link set rogue1 addrgenmode none up".to_owned(),
        "link set rogue0 addrgenmode none master cni0 up".to_owned(),
    ])?;
    let rogue = Wire::open(&rig.world.node("n1").netns, "rogue1")?;
    Ok((rig, rogue))
}

/// The pods' own frames, by wire: from the client to the server's port 53.
fn said(rig: &Rig, family: Family, payload: &[u8]) -> Result<(Wire, Vec<u8>)> {
    let wire = Wire::open(&rig.pod("a/client").netns, "eth0")?;
    let to = Wire::open(&rig.pod("a/server").netns, "eth0")?.mac;
    let (src, dst) = (rig.at("a/client", family, 4000), rig.at("a/server", family, 53));
    let body = packet(src.ip(), dst.ip(), frames::UDP, &udp(src, dst, payload));
    let frame = frame(to, wire.mac, kind(dst.ip()), &body);
    Ok((wire, frame))
}

/// A datagram flow over a bridge, on the short way at both ends.
fn established(rig: &Rig, family: Family) -> Result<UdpServer> {
    let (from, to) = (rig.at("a/client", family, 4000), rig.at("a/server", family, 53));
    let server = UdpServer::start(&rig.pod("a/server").netns, to)?;
    for _ in 0..3 {
        ensure!(datagram(&rig.pod("a/client").netns, from, to, SOON)?, "the flow");
    }
    let table = Table::open(rig)?;
    for pod in ["a/client", "a/server"] {
        table.short(device(rig, pod)?, frames::UDP, 4000, &[A, B])?;
    }
    Ok(server)
}

/// Who has a place on the bridge wears the client's addresses, and its ports.
fn forged_source() -> Result<()> {
    let (mut rig, rogue) = bridged()?;
    rig.apply(&pair())?;
    for family in Family::BOTH {
        let _server = established(&rig, family)?;
        let tap = Tap::start(&rig.pod("a/server").netns)?;
        let (wire, good) = said(&rig, family, b"from the client")?;
        wire.send(&good)?;
        ensure!(tap.sees(b"from the client", SOON)?, "the client's own frame");
        let (_, forged) = said(&rig, family, forge::SECRET)?;
        let before = rig.counters()?;
        rogue.send(&forged)?;
        eventually("counted", || Ok(rig.counters()?.get(Counter::Spoofed) > before.get(Counter::Spoofed)))?;
        ensure!(!tap.sees(forge::SECRET, crate::peers::SILENCE)?, "{family:?}: a forged source arrived");
        wire.send(&good)?;
        ensure!(tap.sees(b"from the client", SOON)?, "the client's own frame, after it");
        Table::open(&rig)?.clear();
    }
    Ok(())
}

/// The pod itself wears another's hardware address.
fn forged_mac() -> Result<()> {
    let (mut rig, _) = bridged()?;
    rig.apply(&pair())?;
    let _server = established(&rig, Family::V4)?;
    let (wire, mut frame) = said(&rig, Family::V4, forge::SECRET)?;
    let tap = Tap::start(&rig.pod("a/server").netns)?;
    for at in 6..12 {
        let right = frame[at];
        frame[at] ^= 2;
        let before = rig.counters()?;
        wire.send(&frame)?;
        eventually("counted", || {
            Ok(rig.counters()?.get(Counter::SpoofedMac) > before.get(Counter::SpoofedMac))
        })
        .with_context(|| format!("byte {at}"))?;
        frame[at] = right;
    }
    ensure!(!tap.sees(forge::SECRET, crate::peers::SILENCE)?, "it arrived");
    Ok(())
}

/// After a generation that has no row for it nothing of the flow passes, in either direction and at either end.
fn revoked() -> Result<()> {
    for gone in [0..3, 3..7] {
        let mut rig = Rig::routed()?;
        rig.apply(&pair())?;
        let _servers = (established(&rig, Family::V4)?, Server::start(&rig.pod("a/server").netns, 80)?);
        let mut stream = Connection::open(&rig.pod("a/client").netns, rig.at("a/server", Family::V4, 80))?;
        speak(&mut stream)?;
        let taps = [Tap::start(&rig.pod("a/server").netns)?, Tap::start(&rig.pod("a/client").netns)?];
        let mut rules: Vec<_> = pair().into_iter().enumerate().filter(|(at, _)| !gone.contains(at)).collect();
        let isolated = if gone.start == 0 {
            closed("a/client", Direction::Egress)
        } else {
            closed("a/server", Direction::Ingress)
        };
        rules.push((0, isolated));
        rig.apply(&rules.into_iter().map(|(_, rule)| rule).collect::<Vec<_>>())?;
        let before = rig.counters()?;
        let (from, to) = (rig.at("a/client", Family::V4, 4000), rig.at("a/server", Family::V4, 53));
        let there = ipv4(v4(from), v4(to), frames::UDP, 64, &udp(from, to, forge::SECRET));
        let back = ipv4(v4(to), v4(from), frames::UDP, 64, &udp(to, from, forge::SECRET));
        rig.pod("a/client").netns.inside(|| forge::raw(to.ip(), &there))??;
        rig.pod("a/server").netns.inside(|| forge::raw(from.ip(), &back))??;
        eventually("cut", || Ok(rig.counters()?.get(Counter::Cut) > before.get(Counter::Cut)))?;
        // Each tap sees what its own pod sends, once.
        for (tap, own) in taps.iter().zip([&back, &there]) {
            let mut seen = 0;
            while let Some(frame) = tap.next()? {
                seen +=
                    usize::from(frames::contains(&frame, forge::SECRET) && !frames::contains(&frame, own));
            }
            ensure!(seen == 0, "a packet of a flow that was revoked arrived");
        }
        stream.is_dead()?;
    }
    Ok(())
}

fn v4(address: SocketAddr) -> std::net::Ipv4Addr {
    match address.ip() {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => panic!("IPv4 alone"),
    }
}

/// The answers of a flow are the proxy's as soon as it dials on the same ports.
fn upstream() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[ingress("a/server", "b/remote", tcp_ports(80, 80)), closed("a/server", Direction::Egress)])?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let mut connection = Connection::open(&rig.pod("b/remote").netns, rig.at("a/server", Family::V4, 80))?;
    speak(&mut connection)?;
    let table = Table::open(&rig)?;
    let (from, to) = (connection.local()?, rig.at("a/server", Family::V4, 80));
    let server = device(&rig, "a/server")?;
    table.short(server, frames::TCP, from.port(), &[A, B])?;
    // What hook D sees of the proxy's dialling: a SYN in the client's name.
    let syn = ipv4(v4(from), v4(to), frames::TCP, 64, &tcp(from, to, 2, &[]));
    let proxy = rig.node("n1").proxy_netns().try_clone_to_owned()?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<()> {
            use std::os::fd::AsFd as _;
            rustix::thread::move_into_link_name_space(
                proxy.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            forge::raw(to.ip(), &syn)
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    eventually("two entries", || Ok(table.of(server, frames::TCP, from.port()).len() == 2))?;
    for (key, entry) in table.of(server, frames::TCP, from.port()) {
        let short = table.is_short(&entry, A)?;
        ensure!(!short, "kind {} is on the short way at hook A: {entry:?}", key[KIND]);
    }
    let before = rig.counters()?;
    let ack = ipv4(v4(to), v4(from), frames::TCP, 64, &tcp(to, from, 0x10, b"answer"));
    rig.pod("a/server").netns.inside(|| forge::raw(from.ip(), &ack))??;
    eventually("to the proxy", || {
        Ok(rig.counters()?.get(Counter::UpstreamReply) > before.get(Counter::UpstreamReply))
    })
}

/// A tunnel that the node gets later is none of the flows' business: datagrams to a node never go the short way.
fn tunnel() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[])?;
    let node = rig.world.node("n1").clone();
    let (from, to) = (rig.at("a/client", Family::V4, 4000), SocketAddr::new(node.v4.into(), 4790));
    let _server = UdpServer::start(&node.netns, to)?;
    for _ in 0..3 {
        ensure!(datagram(&rig.pod("a/client").netns, from, to, SOON)?, "the flow");
    }
    let table = Table::open(&rig)?;
    let (_, entry) = table.short(device(&rig, "a/client")?, frames::UDP, 4000, &[])?;
    ensure!(!table.is_short(&entry, A)?, "datagrams to a node are on the short way");
    node.netns.ip_batch(&["link add vx0 type vxlan id 7 dstport 4790 dev eth0".to_owned()])?;
    let found = rig.node_mut("n1").verify();
    ensure!(found.len() == 1 && found[0].stays.is_none(), "{found:?}");
    let before = rig.counters()?;
    ensure!(!datagram(&rig.pod("a/client").netns, from, to, crate::peers::SILENCE)?, "into a tunnel");
    rig.grew(&before, Counter::Encapsulated)
}

/// What the node sends to its pod, and what the pod answers, is no row's business and never the short way's.
fn of_the_node() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[closed("a/server", Direction::Ingress), closed("a/server", Direction::Egress)])?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let node = rig.world.node("n1").netns.clone();
    let mut connection = Connection::open(&node, rig.at("a/server", Family::V4, 80))?;
    speak(&mut connection)?;
    let table = Table::open(&rig)?;
    let (_, entry) = table.short(device(&rig, "a/server")?, frames::TCP, connection.local()?.port(), &[])?;
    ensure!(entry[FAST].iter().all(|byte| *byte == 0), "{entry:?}");
    speak(&mut connection)
}

/// One direction of a flow, as frames.
struct Stream {
    wire: Wire,
    frame: Vec<u8>,
}

fn stream(rig: &Rig, from: (&str, SocketAddr), to: SocketAddr, protocol: u8) -> Result<Stream> {
    let wire = Wire::open(&rig.pod(from.0).netns, "eth0")?;
    let transport = match protocol {
        frames::TCP => tcp(from.1, to, 0x18, b"mutated"),
        _ => udp(from.1, to, b"mutated"),
    };
    let body = packet(from.1.ip(), to.ip(), protocol, &transport);
    let frame = frame(frames::GATEWAY, wire.mac, kind(to.ip()), &body);
    Ok(Stream { wire, frame })
}

/// Changes that a careless reader would not see, each alone.
fn careful(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![frame.to_vec()];
    // Every bit of the headers.
    for at in 0..frame.len().min(14 + 40 + 20) {
        all.extend((0..8).map(|bit| {
            let mut changed = frame.to_vec();
            changed[at] ^= 1 << bit;
            changed
        }));
    }
    // Every length.
    all.extend((14..frame.len()).map(|end| frame[..end].to_vec()));
    all.extend([1, 7, 64].map(|more| [frame, &vec![0; more]].concat()));
    all
}

/// What is compared of a way: what was counted, and what became of the entries.
type Outcome = (Vec<(Counter, u64)>, Vec<Option<(u8, u8)>>);

struct Scale<'a> {
    rig: &'a Rig,
    table: Table,
    entries: Vec<(Key, Entry)>,
}

impl Scale<'_> {
    /// The entries as they were, on the short way or not, and no others.
    fn set(&mut self, short: bool) -> Result<()> {
        let kept: Vec<Key> = self.entries.iter().map(|(key, _)| *key).collect();
        let others: Vec<Key> = self.table.flows.keys().filter_map(Result::ok).collect();
        for key in others.iter().filter(|key| !kept.contains(key)) {
            let _ = self.table.flows.remove(key);
        }
        for (key, entry) in &self.entries {
            let mut entry = *entry;
            entry[SEEN].copy_from_slice(&now().to_ne_bytes());
            if !short {
                entry[FAST].fill(0);
            }
            self.table.flows.insert(key, entry, 0)?;
        }
        Ok(())
    }

    fn send(&mut self, stream: &Stream, bytes: &[u8], short: bool) -> Result<Outcome> {
        self.set(short)?;
        let before = self.rig.counters()?;
        stream.wire.send(bytes)?;
        // Behind it on the same CPU's queue, and with a reason that nothing else here has.
        stream.wire.send(&fence(&stream.frame))?;
        let after = settled(self.rig, &before)?;
        let mut grown = after.since(&before);
        grown.retain(|(counter, _)| !BESIDE.contains(counter) && !OTHERS.contains(counter));
        let mut left = Vec::new();
        for (key, _) in &self.entries {
            left.push(self.table.flows.get(key, 0).ok().map(|entry| (entry[STATE], entry[LIFE])));
        }
        Ok((grown, left))
    }
}

/// A frame of no kind that anybody knows.
fn fence(frame: &[u8]) -> Vec<u8> {
    let mut fence = frame.to_vec();
    fence[12..14].copy_from_slice(&[0x88, 0xb5]);
    fence
}

fn settled(rig: &Rig, before: &Counters) -> Result<Counters> {
    let mut last = None;
    eventually("the frame after is counted", || {
        let now = rig.counters()?;
        let done = now.get(Counter::NotIp) > before.get(Counter::NotIp);
        last = Some(now);
        Ok(done)
    })?;
    last.context("a reading")
}

/// Nobody in there answers: what is counted is the frame alone.
fn silence(rig: &Rig, pod: &str) -> Result<()> {
    let rules = rig.world.dir().join("silence.nft");
    std::fs::write(
        &rules,
        "table inet silence {\n\
         chain in {\ntype filter hook prerouting priority -400; policy drop;\n\
         icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n}\n\
         chain out {\ntype filter hook output priority -400; policy drop;\n\
         icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n}\n}\n",
    )?;
    rig.pod(pod).netns.run(&["nft", "-f", &rules.display().to_string()]).map(drop)
}

fn both_ways() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&pair())?;
    // The fence's queue is the frame's.
    let mut one = rustix::thread::CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &one)?;
    let (client, server) = (device(&rig, "a/client")?, device(&rig, "a/server")?);
    let mut flows = Vec::new();
    let (mut entries, listener) = (Vec::new(), Server::start(&rig.pod("a/server").netns, 80)?);
    let mut open = Vec::new();
    for family in Family::BOTH {
        let _server = established(&rig, family)?;
        flows.push((rig.at("a/client", family, 4000), rig.at("a/server", family, 53), frames::UDP));
        let mut connection = Connection::open(&rig.pod("a/client").netns, rig.at("a/server", family, 80))?;
        speak(&mut connection)?;
        flows.push((connection.local()?, rig.at("a/server", family, 80), frames::TCP));
        for (at, protocol, port) in [client, server]
            .into_iter()
            .flat_map(|at| [(at, frames::UDP, 4000), (at, frames::TCP, flows[flows.len() - 1].0.port())])
        {
            entries.push(table_entry(&rig, at, protocol, port)?);
        }
        Table::open(&rig)?.clear();
        open.push(connection);
    }
    for pod in ["a/client", "a/server"] {
        silence(&rig, pod)?;
    }
    let seed = seed()?;
    let outcome = compare(&rig, &flows, entries, seed).with_context(|| format!("SLUICE_SEED={seed}"));
    drop((open, listener));
    rig.explain(outcome)
}

fn table_entry(rig: &Rig, device: u32, protocol: u8, port: u16) -> Result<(Key, Entry)> {
    Table::open(rig)?.short(device, protocol, port, &[A, B])
}

fn compare(
    rig: &Rig,
    flows: &[(SocketAddr, SocketAddr, u8)],
    entries: Vec<(Key, Entry)>,
    seed: u64,
) -> Result<()> {
    let mut scale = Scale { rig, table: Table::open(rig)?, entries };
    let mut random = Random(seed);
    let mut fates = std::collections::BTreeSet::new();
    for (client, server, protocol) in flows {
        let there = (("a/client", *client), ("a/server", *server));
        for (from, to) in [there, (there.1, there.0)] {
            let stream = stream(rig, from, to.1, *protocol)?;
            let random = (0..FRAMES).map(|_| mutate(&mut random, stream.frame.clone()));
            let all: Vec<Vec<u8>> = careful(&stream.frame).into_iter().chain(random).collect();
            for frame in all {
                let (short, long) = (scale.send(&stream, &frame, true)?, scale.send(&stream, &frame, false)?);
                ensure!(short == long, "{frame:02x?}:\n short {short:?}\n long {long:?}");
                fates.extend(short.0.iter().map(|(counter, _)| *counter));
            }
        }
    }
    // All of it, and not one reason for everything.
    ensure!(fates.contains(&Counter::Known) && fates.len() > 8, "{fates:?}");
    Ok(())
}
