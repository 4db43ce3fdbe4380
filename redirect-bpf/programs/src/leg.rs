//! Hook D: the outer end of the helper veth, where the packets of the proxy's two legs come out.
//!
//! Tells them apart, remembers the connections that the proxy opens and those clients' of which the flow table knows
//! nothing, and marks both. What comes here the proxy's namespace has sent: nothing is refused but what is of no endpoint.

use crate::Fate;
use crate::flow::{self, backward, forget, forward, note, recall};
use crate::maps::{Generation, config};
use crate::packet::{Form, Packet, TCP};
use crate::pod::netfilter_bit;
use crate::proxy::{self, TCP_ESTABLISHED, TCP_NEW_SYN_RECV, reversed};
use crate::row::{Judgement, Question};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Counter, FlowKey, FlowKind, FlowState, RowKey, flow_flag, life};

/// What a packet of the proxy's is found to be.
#[derive(Clone, Copy)]
enum Leg {
    /// Of a leg that is known, or that nothing need be remembered of. It goes by this device, past the node's stack, or
    /// into the stack if by none.
    Goes(u32),
    /// In the middle of a connection of which nothing is remembered.
    Unknown,
    /// Of a connection that the proxy opens, which the endpoints at its ends must know.
    Upstream,
    /// Of no endpoint.
    Stray,
    /// There is no room for its entry.
    Full,
}

impl Leg {
    /// As a function that is not inlined returns it: a device in the lower half.
    #[inline(always)]
    fn code(self) -> u64 {
        match self {
            Self::Goes(device) => GOES | u64::from(device),
            Self::Unknown => UNKNOWN,
            Self::Upstream => UPSTREAM,
            Self::Stray => STRAY,
            Self::Full => FULL,
        }
    }

    /// What [`Leg::code`] made.
    #[inline(always)]
    fn from_code(code: u64) -> Self {
        match code & !DEVICE {
            GOES => Self::Goes(code as u32),
            UNKNOWN => Self::Unknown,
            UPSTREAM => Self::Upstream,
            FULL => Self::Full,
            _ => Self::Stray,
        }
    }
}

const DEVICE: u64 = 0xffff_ffff;
const STRAY: u64 = 0;
const GOES: u64 = 1 << 32;
const UNKNOWN: u64 = 2 << 32;
const UPSTREAM: u64 = 3 << 32;
const FULL: u64 = 4 << 32;

/// Hook D.
#[inline(always)]
pub(crate) fn from_proxy(ctx: &TcContext) -> Fate {
    match Packet::read_plain(ctx) {
        Ok(packet) if packet.protocol == TCP && packet.form == Form::Flow => {}
        Ok(_) => return Fate::Drop(Counter::Stray),
        Err(reason) => return Fate::Drop(reason),
    }
    ctx.set_mark(config().mark);
    let skb = ctx.skb.skb;
    let mut leg = Leg::from_code(known_leg());
    if matches!(leg, Leg::Unknown) {
        leg = Leg::from_code(unknown_leg(skb));
    }
    if matches!(leg, Leg::Upstream) {
        leg = Leg::from_code(upstream_leg());
    }
    match leg {
        Leg::Goes(0) => Fate::Pass(Counter::FromProxy),
        Leg::Goes(device) => Fate::Straight(device, Counter::FromProxy),
        Leg::Full => Fate::Drop(Counter::FlowTable),
        _ => Fate::Drop(Counter::Stray),
    }
}

// Functions of their own, one after the other: each needs much of the stack.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn known_leg() -> u64 {
    let Ok(packet) = Packet::current() else { return STRAY };
    let ends = Ends::of(packet);
    find(&ends, packet).code()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn unknown_leg(skb: *mut __sk_buff) -> u64 {
    let Ok(packet) = Packet::current() else { return STRAY };
    ask(&TcContext::new(skb), &Ends::of(packet), packet).code()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn upstream_leg() -> u64 {
    let Ok(packet) = Packet::current() else { return STRAY };
    let ends = Ends::of(packet);
    let epoch = ends.generation.epoch;
    let done = upstream(ends.from, epoch, packet, true) && upstream(ends.to, epoch, packet, false);
    if done { straight(ends.generation, ends.to).code() } else { FULL }
}

/// The endpoints of this node in whose name a packet is, and for whom.
struct Ends {
    generation: Generation,
    from: Option<u32>,
    to: Option<u32>,
}

impl Ends {
    #[inline(always)]
    fn of(packet: &Packet) -> Self {
        let generation = Generation::current();
        Self { generation, from: generation.endpoint(&packet.src), to: generation.endpoint(&packet.dst) }
    }
}

#[inline(always)]
fn find(ends: &Ends, packet: &Packet) -> Leg {
    let Ends { generation, from, to } = *ends;
    if from.is_none() && to.is_none() {
        return Leg::Stray;
    }
    // Past the node's stack goes what its conntrack sees one direction of at most, and would call invalid:
    // what answers a flow that hook A took, and what will be answered at hook A.
    if held(to, FlowKind::Egress, packet).is_some() {
        return straight(generation, to);
    }
    // What hook B took came through the stack, perhaps through a translation, or only over a bridge.
    if let Some(flags) = held(from, FlowKind::Ingress, packet) {
        let unseen = flags & flow_flag::UNSEEN != 0;
        return if unseen { straight(generation, from) } else { Leg::Goes(0) };
    }
    let (at_from, at_to) = (known(from, packet, true), known(to, packet, false));
    // The last word of a connection that was let go begins none.
    if (at_from != Known::No && at_to != Known::No) || packet.is_reset() {
        return straight(generation, to);
    }
    // What one of them knows the other must.
    if packet.is_open() || at_from == Known::Yes || at_to == Known::Yes {
        Leg::Upstream
    } else {
        Leg::Unknown
    }
}

/// Nothing is remembered of a client's connection to an endpoint that has all the flows that it may have (`steer.rs`),
/// until the client has answered; and of what was evicted. The proxy's socket knows more.
#[inline(always)]
fn ask(ctx: &TcContext, ends: &Ends, packet: &Packet) -> Leg {
    let Ends { generation, from, to } = *ends;
    let state = proxy::state(ctx, reversed(packet), packet.v6, config().proxy_nsid as u64);
    let flags = unseen(generation, from, to, packet);
    let goes = match (from, flags) {
        (Some(_), 0) => Leg::Goes(0),
        (Some(_), _) => straight(generation, from),
        (None, _) => straight(generation, to),
    };
    // What the listener says to a SYN, or to whoever sends more than that: a packet with a forged address costs no entry.
    if state == 0 || state == TCP_NEW_SYN_RECV {
        return goes;
    }
    // A client of this node must know its own connection, else its hook B takes this for somebody else's.
    let strange = to.is_some_and(|ifindex| recall(&backward(ifindex, FlowKind::Egress, packet)).is_none());
    match from {
        Some(endpoint) if state == TCP_ESTABLISHED && !strange && asked(generation, endpoint, packet) => {
            let life = life::ANSWERED | life::CONFIRMED;
            let entry = flow::entry(generation.epoch, FlowState::Proxied, flags, life, 0);
            flow::remember_free(&backward(endpoint, FlowKind::Ingress, packet), &entry);
            goes
        }
        _ => Leg::Upstream,
    }
}

/// Whether the rows of an endpoint send to the proxy what this answers.
#[inline(always)]
fn asked(generation: Generation, endpoint: u32, packet: &Packet) -> bool {
    let Some(value) = generation.behind(endpoint) else { return false };
    let question = Question {
        profile: value.profile,
        direction: FlowKind::Ingress,
        peer: &packet.dst,
        protocol: RowKey::TCP,
        number: packet.sport,
        host: false,
    };
    matches!(question.judge(generation).verdict, Judgement::Proxy | Judgement::Watch)
}

/// [`flow_flag::UNSEEN`] where both ends are on one bridge that asks no netfilter. One of them may have asked for a
/// Service; then its answer goes past the translation, as it does there without us.
#[inline(always)]
fn unseen(generation: Generation, from: Option<u32>, to: Option<u32>, packet: &Packet) -> u8 {
    let way = |endpoint: Option<u32>| {
        let value = generation.behind(endpoint?)?;
        if Some(value.way) == endpoint { None } else { Some(value.way) }
    };
    let one = way(from).is_some_and(|way_from| way(to) == Some(way_from));
    if one && config().flags & netfilter_bit(packet) == 0 { flow_flag::UNSEEN } else { 0 }
}

/// By the device that an endpoint is reached by; into the stack what is for elsewhere.
#[inline(always)]
fn straight(generation: Generation, by: Option<u32>) -> Leg {
    Leg::Goes(by.and_then(|ifindex| generation.behind(ifindex)).map_or(0, |endpoint| endpoint.way))
}

/// The flags of the flow of this endpoint that the packet answers, if the proxy holds it.
#[inline(always)]
fn held(endpoint: Option<u32>, kind: FlowKind, packet: &Packet) -> Option<u8> {
    let key = backward(endpoint?, kind, packet);
    let entry = recall(&key).filter(|entry| entry.state == FlowState::Proxied as u8)?;
    let flags = entry.flags;
    // What is for an endpoint passes its hook B, which forgets it.
    if note(entry, packet, false) && kind as u8 == FlowKind::Ingress as u8 {
        forget(&key);
    }
    Some(flags)
}

/// Whether an endpoint knows the proxy's own connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// There is no endpoint.
    Nobody,
    Yes,
    No,
}

/// Notes a packet of the proxy's own connection at an endpoint. `last`: none of its hooks sees it.
#[inline(always)]
fn known(endpoint: Option<u32>, packet: &Packet, last: bool) -> Known {
    let Some(ifindex) = endpoint else { return Known::Nobody };
    let key: FlowKey = forward(ifindex, FlowKind::Upstream, packet);
    let Some(entry) = recall(&key) else { return Known::No };
    if note(entry, packet, true) && last {
        forget(&key);
    }
    Known::Yes
}

/// Remembers the proxy's own connection at an endpoint, so that the hooks there bring the answers back. `last`: none
/// of them sees this packet.
#[inline(always)]
fn upstream(endpoint: Option<u32>, epoch: u64, packet: &Packet, last: bool) -> bool {
    let Some(ifindex) = endpoint else { return true };
    let key: FlowKey = forward(ifindex, FlowKind::Upstream, packet);
    // Where only the other end had forgotten it.
    if recall(&key).is_some() {
        return true;
    }
    let done = flow::remember_free(&key, &flow::entry(epoch, FlowState::Upstream, 0, 0, 0));
    // A flow on the same ports, in whose name the proxy may well dial, has answers that are looked for in its own
    // entry only after this one's.
    flow::lengthen(&FlowKey { kind: if last { FlowKind::Egress } else { FlowKind::Ingress } as u8, ..key });
    done
}
