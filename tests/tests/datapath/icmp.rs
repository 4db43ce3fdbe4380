//! ICMP by type: what a row says of one type holds for no other, and an answer passes as an answer alone.
//!
//! The packets are made by hand, so that any type opens a flow, and what arrives is read from a raw socket.

use crate::forge::{self, ICMP, ICMPV6, SECRET, Sniffer, icmp4, icmp6, ipv4};
use crate::peers::{SOON, ping};
use crate::rig::Rig;
use crate::rules::{closed, egress, icmp, icmp_types, ingress};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortSet};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use sluice_tests::{NodeSpec, Pod};
use socket2::Domain;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The identifier of the flows here.
const ID: u16 = 7;
/// What arrives although it must not does within this of what must.
const LATE: Duration = Duration::from_millis(400);
/// How far IPv4's header reaches, which a raw socket shows.
const IPV4_HEADER: usize = 20;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("icmp: where echo requests are allowed nothing else opens a flow", echo_alone),
        test("icmp: a flow carries its own type, and no type the other way", own_type),
        test("icmp: an echo reply that nobody asked for is judged as one", replies_alone),
        test("icmp: a denied type is met where the others pass", denied_beside),
        test("icmp: errors about allowed flows pass, about others not", errors),
        test("icmp: a type is cut when its row goes", revoked),
        test("icmp: the node pings a closed pod, which only answers", node_pings),
    ]
}

/// The one of two that is of this family.
fn either<T>(family: Family, v4: T, v6: T) -> T {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn request(family: Family) -> u8 {
    either(family, 8, 128)
}

fn reply(family: Family) -> u8 {
    either(family, 0, 129)
}

/// What is neither: replies and requests of every kind that has them, an error about nothing, and a type of nobody.
fn others(family: Family) -> &'static [u8] {
    either(family, &[3, 13, 14, 15, 16, 17, 18, 42, 43, 200], &[1, 139, 140, 160, 161, 200])
}

fn echo() -> PortSet {
    icmp_types(&[8], &[128])
}

/// An ICMP packet with what an attack carries.
fn packet(from: &Pod, to: &Pod, family: Family, kind: u8, id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let body = [&[kind, 0, 0, 0, high, low, 0, 1][..], SECRET].concat();
    match family {
        Family::V4 => ipv4(from.v4, to.v4, 1, 64, &icmp4(body)),
        Family::V6 => icmp6(from.v6, to.v6, 64, body),
    }
}

fn send(from: &Pod, to: &Pod, family: Family, packet: &[u8]) -> Result<()> {
    from.netns.inside(|| forge::raw(to.ip(family), packet))?
}

fn sniffer(at: &Pod, family: Family) -> Result<Sniffer> {
    let (domain, protocol) = either(family, (Domain::IPV4, ICMP), (Domain::IPV6, ICMPV6));
    Sniffer::start(&at.netns, domain, protocol)
}

/// The type of a packet of ours that a raw socket saw.
fn kind(family: Family, packet: &[u8]) -> Option<u8> {
    let ours = packet.windows(SECRET.len()).any(|window| window == SECRET);
    packet.get(either(family, IPV4_HEADER, 0)).copied().filter(|_| ours)
}

/// The types that come, until all of `wanted` have and nothing else will.
fn coming(sniffer: &Sniffer, family: Family, wanted: &[u8]) -> BTreeSet<u8> {
    let wanted: BTreeSet<u8> = wanted.iter().copied().collect();
    let (mut seen, start) = (BTreeSet::new(), Instant::now());
    while !seen.is_superset(&wanted) && start.elapsed() < SOON {
        seen.extend(
            sniffer.wait(LATE, |packet| kind(family, packet).is_some()).and_then(|p| kind(family, &p)),
        );
    }
    while let Some(more) = sniffer.wait(LATE, |packet| kind(family, packet).is_some()) {
        seen.extend(kind(family, &more));
    }
    seen
}

/// One end of a way, the other, and the family.
#[derive(Clone, Copy)]
struct Way<'a> {
    from: &'a Pod,
    to: &'a Pod,
    family: Family,
}

impl Way<'_> {
    fn back(self) -> Self {
        Self { from: self.to, to: self.from, family: self.family }
    }

    /// That of these types, each sent once with this identifier, exactly the allowed ones arrive.
    fn carries(self, id: u16, kinds: &[u8], allowed: &[u8]) -> Result<()> {
        let sniffer = sniffer(self.to, self.family)?;
        for kind in kinds {
            send(self.from, self.to, self.family, &packet(self.from, self.to, self.family, *kind, id))?;
        }
        let seen = coming(&sniffer, self.family, allowed);
        let wanted: BTreeSet<u8> = allowed.iter().copied().collect();
        let (from, to, family) = (&self.from.name, &self.to.name, self.family);
        ensure!(seen == wanted, "{from} to {to}, {family:?}, id {id}: of types {kinds:?} came {seen:?}");
        Ok(())
    }

    /// Whether an error arrives that is about a packet of this type that the other end is said to have sent.
    fn carries_error(self, about: u8, id: u16) -> Result<bool> {
        let sniffer = sniffer(self.to, self.family)?;
        let inner = packet(self.to, self.from, self.family, about, id);
        let error = either(self.family, 3, 1);
        let body = [&[error, 1, 0, 0, 0, 0, 0, 0][..], &inner].concat();
        let packet = match self.family {
            Family::V4 => ipv4(self.from.v4, self.to.v4, 1, 64, &icmp4(body)),
            Family::V6 => icmp6(self.from.v6, self.to.v6, 64, body),
        };
        send(self.from, self.to, self.family, &packet)?;
        Ok(sniffer.wait(LATE, |packet| kind(self.family, packet) == Some(error)).is_some())
    }
}

/// Both hooks: what a pod sends, and what one is sent.
fn both_hooks(rig: &Rig) -> Vec<Way<'_>> {
    let ends = [("a/client", "b/remote"), ("b/remote", "a/server")];
    let way = |(from, to), family| Way { from: rig.pod(from), to: rig.pod(to), family };
    Family::BOTH.into_iter().flat_map(|family| ends.map(|ends| way(ends, family))).collect()
}

/// `a/client` sends to `b/remote` and `a/server` is sent by it what is of these types, and nothing else.
fn only(types: &PortSet) -> [crate::rules::Line; 4] {
    [
        egress("a/client", "b/remote", types.clone()),
        closed("a/client", Direction::Ingress),
        ingress("a/server", "b/remote", types.clone()),
        closed("a/server", Direction::Egress),
    ]
}

fn echo_alone() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&only(&echo()))?;
        let steps = |way: Way<'_>| -> Result<()> {
            let (request, reply, others) = (request(way.family), reply(way.family), others(way.family));
            // Before there is a flow, and on the identifier of one; 0 is what those without one would share.
            for id in [ID, 0] {
                way.carries(id, &[others, &[reply]].concat(), &[])?;
                way.back().carries(id, &[others, &[request, reply]].concat(), &[])?;
                way.carries(id, &[request], &[request])?;
                way.carries(id, &[others, &[reply]].concat(), &[])?;
                way.back().carries(id, &[others, &[request, reply]].concat(), &[reply])?;
            }
            // No flow has this identifier.
            way.back().carries(ID + 1, &[reply], &[])?;
            ensure!(ping(way.from, way.to.ip(way.family))?, "no ping where it is allowed");
            ensure!(!ping(way.to, way.from.ip(way.family))?, "a ping against the rules");
            Ok(())
        };
        rig.explain(both_hooks(&rig).into_iter().try_for_each(steps))?;
    }
    Ok(())
}

fn own_type() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&only(&icmp_types(&[13, 200], &[160, 200])))?;
    rig.explain(both_hooks(&rig).into_iter().try_for_each(|way| {
        let (known, denied) = either(way.family, (13, 17), (160, 139));
        let answer = known + 1;
        let rest = [denied, 201, request(way.family), reply(way.family)];
        way.carries(0, &rest, &[])?;
        way.carries(0, &[200, known], &[200, known])?;
        way.carries(0, &rest, &[])?;
        way.back().carries(0, &[&rest[..], &[200, known]].concat(), &[])?;
        way.back().carries(0, &[answer, denied + 1], &[answer])
    }))
}

fn replies_alone() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&only(&icmp_types(&[0], &[129])))?;
    rig.explain(both_hooks(&rig).into_iter().try_for_each(|way| {
        let (request, reply, others) = (request(way.family), reply(way.family), others(way.family));
        way.carries(ID, &[others, &[request]].concat(), &[])?;
        way.carries(ID, &[reply], &[reply])?;
        way.carries(ID, &[others, &[request]].concat(), &[])?;
        // A request is no answer to a reply, whatever its identifier.
        way.back().carries(ID, &[others, &[request, reply]].concat(), &[])
    }))
}

fn denied_beside() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        egress("a/client", "b/remote", icmp()),
        egress("a/client", "b/remote", echo()).denied(),
        ingress("a/server", "b/remote", icmp()),
        ingress("a/server", "b/remote", echo()).denied(),
    ])?;
    rig.explain(both_hooks(&rig).into_iter().try_for_each(|way| {
        let (request, others) = (request(way.family), others(way.family));
        for id in [ID, 0] {
            way.carries(id, &[request], &[])?;
            way.carries(id, &[&[request], others].concat(), others)?;
            way.carries(id, &[request], &[])?;
        }
        ensure!(!ping(way.from, way.to.ip(way.family))?, "a ping against the rules");
        Ok(())
    }))
}

fn errors() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&only(&echo()))?;
    rig.explain(both_hooks(&rig).into_iter().try_for_each(|way| {
        let (request, reply) = (request(way.family), reply(way.family));
        let other = either(way.family, 13, 160);
        ensure!(!way.back().carries_error(request, ID)?, "an error about what was never sent");
        way.carries(ID, &[request], &[request])?;
        // Of the receiver about the request, of the sender about the reply.
        ensure!(way.back().carries_error(request, ID)?, "no error about the request");
        ensure!(way.carries_error(reply, ID)?, "no error about the reply");
        for (kind, id) in [(request, ID + 1), (reply, ID), (other, ID), (200, ID)] {
            ensure!(!way.back().carries_error(kind, id)?, "an error about type {kind}, id {id}");
        }
        for (kind, id) in [(reply, ID + 1), (request, ID), (other + 1, ID), (200, ID)] {
            ensure!(!way.carries_error(kind, id)?, "an error about type {kind}, id {id}, back");
        }
        Ok(())
    }))
}

fn revoked() -> Result<()> {
    let mut rig = Rig::routed()?;
    for _ in 0..2 {
        rig.apply(&only(&echo()))?;
        rig.explain(both_hooks(&rig).into_iter().try_for_each(|way| {
            let (request, reply) = (request(way.family), reply(way.family));
            way.carries(ID, &[request], &[request])?;
            way.back().carries(ID, &[reply], &[reply])
        }))?;
        rig.apply(&only(&icmp_types(&[13], &[160])))?;
        rig.explain(both_hooks(&rig).into_iter().try_for_each(|way| {
            let (request, reply, other) =
                (request(way.family), reply(way.family), either(way.family, 13, 160));
            way.carries(ID, &[request, other], &[other])?;
            way.back().carries(ID, &[reply, other + 1], &[other + 1])?;
            ensure!(!way.back().carries_error(request, ID)?, "an error about a flow that was cut");
            Ok(())
        }))?;
    }
    Ok(())
}

fn node_pings() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[closed("a/server", Direction::Ingress), closed("a/server", Direction::Egress)])?;
    let (node, server) = (rig.world.node("n1"), rig.pod("a/server"));
    rig.explain(Family::BOTH.into_iter().try_for_each(|family| {
        let pings = |from: &sluice_tests::world::Netns, to: std::net::IpAddr| -> Result<bool> {
            Ok(from.output(&["ping", "-c", "1", "-W", "1", &to.to_string()])?.status.success())
        };
        let address = either::<std::net::IpAddr>(family, node.v4.into(), node.v6.into());
        ensure!(!pings(&server.netns, address)?, "a closed pod pings its node");
        ensure!(pings(&node.netns, server.ip(family))?, "the node does not reach its pod");
        ensure!(!pings(&server.netns, address)?, "a closed pod pings its node once that has");
        Ok(())
    }))
}
