//! Hooks C and D: the two ends of the helper veth between the node and the proxy's namespace.

use crate::Fate;
use crate::flow::{self, backward, forget, forward, note, recall};
use crate::maps::{Generation, config};
use crate::packet::{Form, Packet, TCP};

use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1};
use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::{bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Address, Config, Counter, FlowKey, FlowKind, FlowState, flow_flag};

const PACKET_HOST: u32 = 0;
const CURRENT_NETNS: u64 = u64::MAX;
const TCP_LISTEN: u32 = 10;
const V4_TUPLE: u32 = 12;
const V6_TUPLE: u32 = 36;

/// Hook C: assigns what arrives in the proxy's namespace to the socket it is for.
#[inline(always)]
pub(crate) fn to_proxy(ctx: &TcContext) -> Fate {
    let packet = match Packet::read_plain(ctx) {
        Ok(packet) => packet,
        Err(reason) => return Fate::Drop(reason),
    };
    // The frame still has the address of wherever it was going.
    if ctx.change_type(PACKET_HOST).is_err() {
        return Fate::Drop(Counter::NoSocket);
    }
    if packet.form == Form::Error {
        return learnt(ctx, packet);
    }
    if packet.protocol != TCP || packet.form != Form::Flow {
        return Fate::Drop(Counter::Stray);
    }
    let assign = |sk| assign(ctx, sk);
    // A SYN too, where the connection lives: it may be sent again, or its sender has forgotten a connection that the
    // proxy still has. TCP knows what to answer (RFC 9293, section 3.10.7.4), while the listener would drop it for the
    // other's sake.
    if with_connection(ctx, tuple(packet), packet.v6, CURRENT_NETNS, assign) {
        return Fate::Pass(Counter::AssignedKnown);
    }
    if packet.is_open() {
        return match with_listener(ctx, packet, &config(), CURRENT_NETNS, assign) {
            true => Fate::Pass(Counter::AssignedNew),
            false => Fate::Drop(Counter::NoSocket),
        };
    }
    // A connection that the proxy no longer has, as after a restart, or one that a SYN cookie stands for. The
    // listener knows which: it accepts the one and resets the other, whose sender need not wait in vain.
    match with_listener(ctx, packet, &config(), CURRENT_NETNS, assign) {
        true => Fate::Pass(Counter::NoSocket),
        false => Fate::Drop(Counter::NoSocket),
    }
}

/// An ICMP error goes to the stack, which tells the socket that sent what it is about; TCP itself then asks whether
/// the sequence number in it is one of what is on its way (RFC 5927, section 4.1).
#[inline(always)]
fn learnt(ctx: &TcContext, packet: &Packet) -> Fate {
    let Ok(inner) = packet.about() else { return Fate::Drop(Counter::Stray) };
    if inner.protocol != TCP || inner.src != packet.dst {
        return Fate::Drop(Counter::Stray);
    }
    match with_connection(ctx, reversed(inner), inner.v6, CURRENT_NETNS, |_| ()) {
        true => Fate::Pass(Counter::Related),
        false => Fate::Drop(Counter::NoSocket),
    }
}

/// Hook D: tells the proxy's two legs apart, remembers its own connections and marks both.
#[inline(always)]
pub(crate) fn from_proxy(ctx: &TcContext) -> Fate {
    let packet = match Packet::read_plain(ctx) {
        Ok(packet) if packet.protocol == TCP && packet.form == Form::Flow => packet,
        Ok(_) => return Fate::Drop(Counter::Stray),
        Err(reason) => return Fate::Drop(reason),
    };
    let generation = Generation::current();
    let from = generation.endpoint(&packet.src);
    let to = generation.endpoint(&packet.dst);
    if from.is_none() && to.is_none() {
        return Fate::Drop(Counter::Stray);
    }
    ctx.set_mark(config().mark);
    // Past the node's stack goes what its conntrack sees one direction of at most, and would call invalid:
    // what answers a flow that hook A took, and what will be answered at hook A.
    if held(to, FlowKind::Egress, packet).is_some() {
        return straight(generation, to);
    }
    // What hook B took came through the stack, perhaps through a translation, or only over a bridge.
    if let Some(flags) = held(from, FlowKind::Ingress, packet) {
        let unseen = flags & flow_flag::UNSEEN != 0;
        return if unseen { straight(generation, from) } else { Fate::Pass(Counter::FromProxy) };
    }
    if !upstream(from, generation.epoch, packet, true) || !upstream(to, generation.epoch, packet, false) {
        return Fate::Drop(Counter::FlowTable);
    }
    straight(generation, to)
}

/// By the device that an endpoint is reached by; into the stack what is for elsewhere.
#[inline(always)]
fn straight(generation: Generation, by: Option<u32>) -> Fate {
    match by.and_then(|ifindex| generation.behind(ifindex)) {
        Some(endpoint) => Fate::Straight(endpoint.way, Counter::FromProxy),
        None => Fate::Pass(Counter::FromProxy),
    }
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

/// Remembers the proxy's own connection at an endpoint, so that the hooks there bring the answers back. `last`: none
/// of them sees this packet.
#[inline(always)]
fn upstream(endpoint: Option<u32>, epoch: u64, packet: &Packet, last: bool) -> bool {
    let Some(ifindex) = endpoint else { return true };
    let key: FlowKey = forward(ifindex, FlowKind::Upstream, packet);
    if let Some(entry) = recall(&key) {
        if note(entry, packet, true) && last {
            forget(&key);
        }
        return true;
    }
    // The last word of a connection that was let go begins none.
    if packet.is_reset() {
        return true;
    }
    let done = flow::remember_free(&key, &flow::entry(epoch, FlowState::Upstream, 0, 0, 0));
    // A flow on the same ports, in whose name the proxy may well dial, has answers that are looked for in its own
    // entry only after this one's.
    flow::lengthen(&FlowKey { kind: if last { FlowKind::Egress } else { FlowKind::Ingress } as u8, ..key });
    done
}

/// Calls `then` with the socket that a packet in the middle of a connection is for, if there is one.
#[inline(always)]
pub(crate) fn with_connection(
    ctx: &TcContext,
    mut tuple: bpf_sock_tuple,
    v6: bool,
    netns: u64,
    then: impl FnOnce(*mut bpf_sock),
) -> bool {
    // SAFETY: the tuple lives on this stack for the call; the reference is released on every way out.
    unsafe {
        let sk = lookup(ctx, &mut tuple, v6, netns);
        if sk.is_null() {
            return false;
        }
        let known = (*sk).state != TCP_LISTEN;
        if known {
            then(sk);
        }
        bpf_sk_release(sk.cast());
        known
    }
}

/// Calls `then` with the proxy's listener, if there is one.
#[inline(always)]
pub(crate) fn with_listener(
    ctx: &TcContext,
    packet: &Packet,
    config: &Config,
    netns: u64,
    then: impl FnOnce(*mut bpf_sock),
) -> bool {
    let mut tuple = tuple(packet);
    let port = config.listen_port.to_be();
    if packet.v6 {
        tuple.__bindgen_anon_1.ipv6.daddr = [0, 0, 0, 1_u32.to_be()];
        tuple.__bindgen_anon_1.ipv6.dport = port;
    } else {
        tuple.__bindgen_anon_1.ipv4.daddr = 0x7f00_0001_u32.to_be();
        tuple.__bindgen_anon_1.ipv4.dport = port;
    }
    // SAFETY: as in `with_connection`.
    unsafe {
        let sk = lookup(ctx, &mut tuple, packet.v6, netns);
        if sk.is_null() {
            return false;
        }
        let listens = (*sk).state == TCP_LISTEN;
        if listens {
            then(sk);
        }
        bpf_sk_release(sk.cast());
        listens
    }
}

#[inline(always)]
fn assign(ctx: &TcContext, sk: *mut bpf_sock) {
    // SAFETY: the caller holds the reference. If it fails the packet has no socket, and no socket in this
    // namespace but the proxy's could be found for it.
    unsafe { bpf_sk_assign(ctx.skb.skb.cast(), sk.cast(), 0) };
}

/// # Safety
/// The caller releases what it gets.
#[inline(always)]
unsafe fn lookup(ctx: &TcContext, tuple: &mut bpf_sock_tuple, v6: bool, netns: u64) -> *mut bpf_sock {
    let length = if v6 { V6_TUPLE } else { V4_TUPLE };
    // SAFETY: the tuple is at least as long as either family's.
    unsafe { bpf_skc_lookup_tcp(ctx.skb.skb.cast(), tuple, length, netns, 0) }
}

/// What finds the socket that a packet is for.
#[inline(always)]
pub(crate) fn tuple(packet: &Packet) -> bpf_sock_tuple {
    between(packet.v6, (&packet.src, packet.sport), (&packet.dst, packet.dport))
}

/// What finds the socket whose own packets look like this one.
#[inline(always)]
pub(crate) fn reversed(packet: &Packet) -> bpf_sock_tuple {
    between(packet.v6, (&packet.dst, packet.dport), (&packet.src, packet.sport))
}

#[inline(always)]
fn between(v6: bool, (src, sport): (&Address, [u8; 2]), (dst, dport): (&Address, [u8; 2])) -> bpf_sock_tuple {
    let sport = u16::from_ne_bytes(sport);
    let dport = u16::from_ne_bytes(dport);
    if v6 {
        let ipv6 =
            bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr: words(src), daddr: words(dst), sport, dport };
        bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } }
    } else {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: words(src)[3],
            daddr: words(dst)[3],
            sport,
            dport,
        };
        bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }
    }
}

#[inline(always)]
fn words(a: &[u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}
