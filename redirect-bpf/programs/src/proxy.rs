//! Hook C: the inner end of the helper veth, in the proxy's namespace; and the proxy's sockets, as every hook asks for them.
//!
//! Judges nothing. Hook D, the outer end, is in `leg.rs`.

use crate::Fate;
use crate::maps::config;
use crate::packet::{Form, Packet, TCP};

use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1};
use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::{bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Address, Config, Counter};

const PACKET_HOST: u32 = 0;
const CURRENT_NETNS: u64 = u64::MAX;
pub(crate) const TCP_ESTABLISHED: u32 = 1;
const TCP_LISTEN: u32 = 10;
/// A SYN that was answered, and nothing more is known of its sender.
pub(crate) const TCP_NEW_SYN_RECV: u32 = 12;
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

/// The state of the socket that a packet in the middle of a connection is for; 0 where there is none.
#[inline(always)]
pub(crate) fn state(ctx: &TcContext, tuple: bpf_sock_tuple, v6: bool, netns: u64) -> u32 {
    let mut state = 0;
    // SAFETY: `with_connection` holds the reference meanwhile, and the verifier allows this read.
    let known = with_connection(ctx, tuple, v6, netns, |sk| state = unsafe { (*sk).state });
    if known { state } else { 0 }
}

/// Calls `then` with that of the proxy's listeners that a connection is for, if there is one.
#[inline(always)]
pub(crate) fn with_listener(
    ctx: &TcContext,
    packet: &Packet,
    config: &Config,
    netns: u64,
    then: impl FnOnce(*mut bpf_sock),
) -> bool {
    let mut tuple = tuple(packet);
    if packet.v6 {
        tuple.__bindgen_anon_1.ipv6.daddr = [0, 0, 0, 1_u32.to_be()];
    } else {
        tuple.__bindgen_anon_1.ipv4.daddr = 0x7f00_0001_u32.to_be();
    }
    let queue = queue(packet, config);
    // SAFETY: as in `with_connection`.
    unsafe {
        let mut sk = listening(ctx, &mut tuple, packet.v6, netns, config.listen_port.wrapping_add(queue));
        // Whoever has fewer listeners than is said has the first: one of another version that takes over or is taken
        // over from.
        if sk.is_null() && queue != 0 {
            sk = listening(ctx, &mut tuple, packet.v6, netns, config.listen_port);
        }
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

/// Which of the proxy's listeners a connection is for. By its ends alone: a SYN that is sent again, and the ACK that brings
/// a SYN cookie back, must find the listener that answered. (The kernel's own hash of a packet is its sender's choice, and
/// another one when it is sent again.) Not keyed: who aims all his connections at one thread has less of the proxy than who
/// spreads them.
#[inline(always)]
fn queue(packet: &Packet, config: &Config) -> u16 {
    let queues = u32::from(config.queues);
    if queues < 2 {
        return 0;
    }
    let (src, dst) = (words(&packet.src), words(&packet.dst));
    let ports =
        u32::from(u16::from_ne_bytes(packet.sport)) << 16 | u32::from(u16::from_ne_bytes(packet.dport));
    let mut hash = ports;
    for word in [src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]] {
        hash = mixed(hash ^ word);
    }
    (hash % queues) as u16
}

/// The finalizer of MurmurHash3: each bit of what goes in moves half of what comes out.
#[inline(always)]
fn mixed(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// # Safety
/// As [`lookup`].
#[inline(always)]
unsafe fn listening(
    ctx: &TcContext,
    tuple: &mut bpf_sock_tuple,
    v6: bool,
    netns: u64,
    port: u16,
) -> *mut bpf_sock {
    if v6 {
        tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
    } else {
        tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
    }
    // SAFETY: the caller keeps to it.
    unsafe { lookup(ctx, tuple, v6, netns) }
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
