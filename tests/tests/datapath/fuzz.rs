//! Random frames at hook A: nothing comes out that this file's own reading calls foreign, and every frame is counted once.
//!
//! `SLUICE_SEED` runs the same frames again. The reading here knows nothing of the programs': it is as plain as can be.

use crate::cases::{self, Ends};
use crate::frames::{GATEWAY, IPV4, IPV6, TCP, Tap, UDP, Wire, summed};
use crate::peers::eventually;
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{egress, ingress, tcp, udp};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::PortSet;
use sluice_redirect::{Counter, Counters};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

/// Frames of each family.
const FRAMES: usize = 3_000;
/// At least so many of them come out, or nothing was tried.
const FRAMES_THAT_ARRIVE: u64 = 30;
/// What a device takes.
const LONGEST: usize = 1_514;
const SHORTEST: usize = 14;
const ENVIRONMENT: &str = "SLUICE_SEED";
/// Counted beside the reason of a packet that is counted already; the last at the proxy's two ends.
pub(crate) const BESIDE: [Counter; 8] = [
    Counter::ResetSent,
    Counter::UnreachableSent,
    Counter::AnswerLimit,
    Counter::EventLimit,
    Counter::EventLost,
    Counter::FlowQuota,
    Counter::OpenRate,
    Counter::Stray,
];

pub(crate) fn tests() -> Vec<Trial> {
    vec![harness::test("fuzz: no frame of a pod comes out that may not", [Need::Bpf], fuzz)]
}

/// Marsaglia's xorshift: enough to choose bytes with, and the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below another.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).expect("fits")).expect("fits")
    }
}

pub(crate) fn seed() -> Result<u64> {
    match std::env::var(ENVIRONMENT) {
        Ok(text) => text.parse().with_context(|| format!("{ENVIRONMENT}={text}")),
        Err(_) => {
            Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() & 0xffff_ffff)? | 1)
        }
    }
}

/// Changes a frame in a few places.
pub(crate) fn mutate(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    const TELLING: [u8; 8] = [0, 1, 4, 6, 17, 44, 0x80, 0xff];
    for _ in 0..=random.below(4) {
        // Most of what is read is at the beginning.
        let end = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(80) };
        let at = random.below(end);
        match random.below(8) {
            0..=2 => bytes[at] ^= 1 << random.below(8),
            3 | 4 => bytes[at] = TELLING[random.below(TELLING.len())],
            5 => bytes.truncate(at.max(SHORTEST)),
            6 => {
                let more = random.below(64);
                bytes.extend((0..more).map(|_| random.next().to_le_bytes()[0]));
            }
            _ => {
                let part = bytes[at..(at + 8).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes.truncate(LONGEST);
    // A wrong checksum would end it in the node's stack, where nothing is tried.
    if bytes[12..14] == IPV4.to_be_bytes() && bytes.len() >= 34 && bytes[14] & 0x0f >= 5 {
        let packet = summed(bytes.split_off(SHORTEST));
        bytes.extend(packet);
    }
    bytes
}

/// A tag that the kernel cannot take off: it drops the frame before any hook.
fn cut_tag(frame: &[u8]) -> bool {
    matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]) && frame.len() < SHORTEST + 6
}

/// The frame's IP source and destination.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = frame.get(14..)?;
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
    match u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]) {
        IPV4 => Some((v4(12)?, v4(16)?)),
        IPV6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

/// Which packet a fragment is of, and whether it is a later one.
type Part = Option<(u32, bool)>;

/// The transport's number and bytes, and what it is a fragment of.
fn transport(frame: &[u8]) -> Option<(u8, &[u8], Part)> {
    let ip = frame.get(14..)?;
    if frame[12..14] == IPV4.to_be_bytes() {
        let field = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff;
        let id = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
        let part = (field != 0).then_some((id, field & 0x1fff != 0));
        return Some((ip[9], ip.get(usize::from(ip[0] & 0x0f) * 4..)?, part));
    }
    let (mut next, mut rest, mut part) = (ip[6], ip.get(40..)?, None);
    while matches!(next, 0 | 43 | 44 | 60) {
        let head = rest.get(..8)?;
        let mut length = (usize::from(head[1]) + 1) * 8;
        if next == 44 {
            length = 8;
            let later = u16::from_be_bytes([head[2], head[3]]) & !7 != 0;
            part = Some((u32::from_be_bytes([head[4], head[5], head[6], head[7]]), later));
            if later {
                return Some((head[0], rest.get(8..)?, part));
            }
        }
        (next, rest) = (head[0], rest.get(length..)?);
    }
    Some((next, rest, part))
}

/// Why a frame that came to where only port 53 of UDP and port 80 of TCP are open should not have.
fn foreign(frame: &[u8], from: IpAddr, to: IpAddr, firsts: &mut HashSet<u32>) -> Option<&'static str> {
    let Some((src, dst)) = addresses(frame) else { return Some("no IP") };
    if (src, dst) != (from, to) {
        return Some("other addresses");
    }
    let Some((protocol, bytes, part)) = transport(frame) else { return Some("cut short") };
    if let Some((id, true)) = part {
        return (!firsts.contains(&id)).then_some("a later fragment of nothing");
    }
    let port = bytes.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]]));
    if !matches!((protocol, port), (UDP, Some(53)) | (TCP, Some(80))) {
        return Some("a closed port");
    }
    firsts.extend(part.map(|(id, _)| id));
    None
}

/// Frames that came in from the node's ends of its pods' veths, and that went out there.
fn carried(node: &Netns, veths: &[String]) -> Result<u64> {
    let links: Vec<serde_json::Value> = serde_json::from_str(&node.run(&["ip", "-s", "-j", "link"])?)?;
    let ours = links.iter().filter(|link| veths.iter().any(|veth| link["ifname"] == veth.as_str()));
    let number = |link: &serde_json::Value, way: &str| link["stats64"][way]["packets"].as_u64();
    ours.map(|link| Ok(number(link, "rx").context("rx")? + number(link, "tx").context("tx")?)).sum()
}

/// How many packets were counted.
fn counted(counters: &Counters, before: &Counters) -> u64 {
    let all = counters.since(before).into_iter().filter(|(counter, _)| !BESIDE.contains(counter));
    all.map(|(_, grown)| grown).sum()
}

fn fuzz() -> Result<()> {
    let seed = seed()?;
    println!("{ENVIRONMENT}={seed}");
    let mut rig = Rig::routed()?;
    rig.apply(&[
        egress("a/client", "b/remote", udp(53)),
        egress("a/client", "b/remote", tcp(80, 80)),
        // Else it might be the answer to what the far end opened, of TCP or SCTP, which is not remembered.
        ingress("a/client", "b/remote", PortSet::All).denied(),
    ])?;
    let tainted = std::fs::read_to_string("/proc/sys/kernel/tainted")?;
    for family in Family::BOTH {
        let result = shoot(&rig, family, &mut Random(seed));
        rig.explain(result.with_context(|| format!("{family:?}, {ENVIRONMENT}={seed}")))?;
    }
    ensure!(
        std::fs::read_to_string("/proc/sys/kernel/tainted")? == tainted,
        "the kernel complained, see its log"
    );
    Ok(())
}

fn shoot(rig: &Rig, family: Family, random: &mut Random) -> Result<()> {
    let node = &rig.world.node("n1").netns;
    let veths: Vec<_> =
        rig.world.pods.iter().filter(|pod| pod.node == "n1").map(|pod| pod.veth.clone()).collect();
    let wire = Wire::open(&rig.pod("a/client").netns, "eth0")?;
    let (from, to) = (rig.pod("a/client").ip(family), rig.pod("b/remote").ip(family));
    let far = Tap::start(&rig.pod("b/remote").netns)?;
    let elsewhere = ["a/server", "a/other", OUTSIDE].map(|name| Tap::start(&rig.pod(name).netns));
    let elsewhere: Vec<Tap> = elsewhere.into_iter().collect::<Result<_>>()?;
    let ends = Ends {
        from: wire.mac,
        to: GATEWAY,
        src: SocketAddr::new(from, 4000),
        dst: SocketAddr::new(to, 53),
        other: rig.pod("a/other").ip(family),
        remote: to,
        node: family.pick(rig.world.node("n1").v4, rig.world.node("n1").v6),
        far: family.pick(rig.world.node("n2").v4, rig.world.node("n2").v6),
        tunnel: 8_472,
        bridge: GATEWAY,
    };
    let valid: Vec<_> = cases::all(family).iter().map(|case| (case.frame)(&ends)).collect();
    let (before, at_first) = (rig.counters()?, carried(node, &veths)?);
    for _ in 0..FRAMES {
        let chosen = valid[random.below(valid.len())].clone();
        let frame = mutate(random, chosen);
        if !cut_tag(&frame) {
            wire.send(&frame)?;
        }
    }
    // What the node's stack and the far end answer goes by hook B, and is counted there.
    eventually("as many were counted as were carried", || {
        Ok(counted(&rig.counters()?, &before) >= carried(node, &veths)? - at_first)
    })
    .with_context(|| {
        let carried = carried(node, &veths).unwrap_or(0) - at_first;
        format!("{carried} were carried; {:?}", rig.counters().map(|now| now.since(&before)))
    })?;
    let (mut arrived, mut firsts) = (0_u64, HashSet::new());
    while let Some(frame) = far.next()? {
        // What the node's end sends, but its own neighbours' talk.
        if frame.get(6..12) != Some(&GATEWAY[..]) || addresses(&frame).is_none_or(|(src, _)| is_local(src)) {
            continue;
        }
        arrived += 1;
        let why = foreign(&frame, from, to, &mut firsts);
        ensure!(why.is_none(), "{}: {frame:02x?}", why.unwrap_or_default());
    }
    // An answer that hook B refuses is counted, and goes no further.
    let more = counted(&rig.counters()?, &before) - (carried(node, &veths)? - at_first);
    ensure!(more <= arrived, "{more} more were counted than carried, and {arrived} might have been answered");
    ensure!(arrived > FRAMES_THAT_ARRIVE, "only {arrived} arrived: nothing was tried");
    for tap in elsewhere {
        while let Some(frame) = tap.next()? {
            let ours = addresses(&frame).is_some_and(|(src, _)| src == from);
            ensure!(!ours, "came to a pod that nothing is open to: {frame:02x?}");
        }
    }
    Ok(())
}

fn is_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_unspecified())
}
