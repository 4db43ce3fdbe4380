//! What a refused packet's sender is told, built out of the packet itself and sent back by the way it came: a reset of
//! TCP, of others that they are administratively prohibited. No verdicts here.
//!
//! The answer wears the address of whom the packet was for. So it must pass the endpoint's other hook unjudged, and it
//! does by its mark, which no pod can make: what comes out of a pod's network namespace has none, nothing but us comes
//! before hook A, and at hook B it must have come from the endpoint's own device besides. Without a configured mark
//! nothing is answered. Called by hooks A and B when `steer.rs` says so, which has also looked at the limit.
//!
//! A checksum is right on every way. Where the packet's own was left to the device (`CHECKSUM_PARTIAL`), it still will
//! be: the device sums up from where the transport header begins, and writes where the packet's protocol has its
//! checksum. Of TCP that is where the reset's belongs. Of UDP it is a field of the ICMP header that is unused, and what
//! stands there before makes the sum come out as zero of one's complement, which changes no checksum. There is no other
//! protocol whose packets come like this and that could be answered.

use crate::maps::{config, count};
use crate::packet::{Packet, TCP, UDP};
use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Counter, FlowKind};

const ETH: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// A TCP header without options; of a reset that is all there is.
const RESET: usize = 20;
/// The header of an ICMP error.
const ERROR: usize = 8;
/// What an error quotes behind the IP header (RFC 792). RFC 4443 asks for more, but an answer that is larger than what
/// it answers would serve who forges the sender.
const QUOTED: usize = 8;
const HOPS: u8 = 64;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// "Communication administratively prohibited": RFC 1812, section 5.2.7.1, and RFC 4443, section 3.1.
const PROHIBITED_V4: [u8; 2] = [3, 13];
const PROHIBITED_V6: [u8; 2] = [1, 1];
const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The longest answer: an `ICMPv6` error.
const LONGEST: usize = ETH + IPV6 + ERROR + IPV6 + QUOTED;

/// The answer that is being built: the stack has no room for it.
#[btf_map]
static ANSWER: PerCpuArray<[u8; LONGEST], 1> = PerCpuArray::new();

/// Whether this is an answer on its way through the endpoint's other hook.
#[inline(always)]
pub(crate) fn is_own(ctx: &TcContext, hook: FlowKind) -> bool {
    // SAFETY: reads of the context that the verifier allows.
    let (mark, arrived, device) =
        unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ingress_ifindex, (*ctx.skb.skb).ifindex) };
    if mark == 0 || mark != config().mark {
        return false;
    }
    if hook as u8 == FlowKind::Egress as u8 {
        // From here on it is a packet of the pod's as any.
        ctx.set_mark(0);
        return true;
    }
    arrived == device
}

/// Answers the packet that was read, and lets the answer take its place. `hook` is a [`FlowKind`]: which hook it is.
// A function of its own: what it needs of the stack is not there beside a verdict.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_packet(skb: *mut __sk_buff, hook: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(reason) = build(&ctx) else { return TC_ACT_SHOT as i32 };
    count(reason);
    ctx.set_mark(config().mark);
    let back = if hook == FlowKind::Ingress as u32 { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: a read of the context that the verifier allows, and a helper without pointers.
    unsafe { bpf_redirect((*skb).ifindex, back) as i32 }
}

/// See [`answer_packet`].
#[inline(always)]
pub(crate) fn send(ctx: &TcContext, hook: FlowKind) -> i32 {
    answer_packet(ctx.skb.skb, hook as u32)
}

#[inline(always)]
fn build(ctx: &TcContext) -> Option<Counter> {
    let packet = Packet::current().ok()?;
    // A group of the link has no one to answer for.
    if config().mark == 0 || packet.head[0] & 1 != 0 {
        return None;
    }
    let answer = ANSWER.get_ptr_mut(0)?;
    // SAFETY: this CPU's own, and programs do not nest on one CPU.
    let answer = unsafe { &mut *answer };
    answer[..6].copy_from_slice(&packet.head[6..12]);
    answer[6..12].copy_from_slice(&packet.head[..6]);
    answer[12..14].copy_from_slice(&packet.head[12..14]);
    match (packet.protocol == TCP, packet.v6) {
        (true, false) => reset::<IPV4, { ETH + IPV4 + RESET }>(ctx, packet, answer),
        (true, true) => reset::<IPV6, { ETH + IPV6 + RESET }>(ctx, packet, answer),
        (false, false) => prohibited::<IPV4, { ETH + IPV4 + ERROR + IPV4 + QUOTED }>(ctx, packet, answer),
        (false, true) => prohibited::<IPV6, { ETH + IPV6 + ERROR + IPV6 + QUOTED }>(ctx, packet, answer),
    }
}

/// A reset with the numbers of RFC 9293, section 3.10.7.1.
#[inline(always)]
fn reset<const IP: usize, const LENGTH: usize>(
    ctx: &TcContext,
    packet: &Packet,
    answer: &mut [u8; LONGEST],
) -> Option<Counter> {
    let at = ETH + IP;
    let mut tcp = [0; RESET];
    load(ctx, at, &mut tcp)?;
    let partial = is_left_to_device(ctx, at + 16)?;
    let flags = tcp[13];
    let (mut sequence, mut acknowledged, mut says) = ([tcp[8], tcp[9], tcp[10], tcp[11]], [0; 4], RST);
    if flags & ACK == 0 {
        let length = packet.end.saturating_sub(packet.judged)
            + u32::from(flags & SYN != 0)
            + u32::from(flags & FIN != 0);
        let next = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(length);
        (sequence, acknowledged, says) = ([0; 4], next.to_be_bytes(), RST | ACK);
    }
    header::<IP>(packet, answer, TCP, RESET);
    answer[at..at + 2].copy_from_slice(&tcp[2..4]);
    answer[at + 2..at + 4].copy_from_slice(&tcp[..2]);
    answer[at + 4..at + 8].copy_from_slice(&sequence);
    answer[at + 8..at + 12].copy_from_slice(&acknowledged);
    answer[at + 12] = (RESET as u8 / 4) << 4;
    answer[at + 13] = says;
    answer[at + 14..at + 20].fill(0);
    let pseudo = pseudo::<IP>(answer, TCP, RESET);
    let sum = if partial { fold(pseudo) } else { !fold(sum::<RESET>(answer, at, pseudo)) };
    answer[at + 16..at + 18].copy_from_slice(&sum.to_ne_bytes());
    write::<LENGTH>(ctx, answer)?;
    Some(Counter::ResetSent)
}

/// An ICMP error that quotes the packet's IP header and what is needed to know whose it was.
#[inline(always)]
fn prohibited<const IP: usize, const LENGTH: usize>(
    ctx: &TcContext,
    packet: &Packet,
    answer: &mut [u8; LONGEST],
) -> Option<Counter> {
    let at = ETH + IP;
    let quote = at + ERROR;
    let mut quoted = [0; QUOTED];
    load(ctx, at, &mut quoted)?;
    let partial = is_left_to_device(ctx, at + if packet.protocol == UDP { 6 } else { 2 })?;
    if partial && packet.protocol != UDP {
        return None;
    }
    let v6 = IP == IPV6;
    let (kind, protocol) = if v6 { (PROHIBITED_V6, ICMPV6) } else { (PROHIBITED_V4, ICMP) };
    header::<IP>(packet, answer, protocol, ERROR + IP + QUOTED);
    answer[at..at + 2].copy_from_slice(&kind);
    answer[at + 2..quote].fill(0);
    answer[quote..quote + IP].copy_from_slice(&packet.head[ETH..ETH + IP]);
    answer[quote + IP..LENGTH].copy_from_slice(&quoted);
    // Of ICMP the pseudo header is no part.
    let pseudo = if v6 { pseudo::<IP>(answer, ICMPV6, ERROR + IP + QUOTED) } else { 0 };
    let all = if v6 {
        sum::<{ ERROR + IPV6 + QUOTED }>(answer, at, pseudo)
    } else {
        sum::<{ ERROR + IPV4 + QUOTED }>(answer, at, pseudo)
    };
    answer[at + 2..at + 4].copy_from_slice(&(!fold(all)).to_ne_bytes());
    if partial {
        answer[at + 6..at + 8].copy_from_slice(&fold(pseudo).to_ne_bytes());
    }
    write::<LENGTH>(ctx, answer)?;
    Some(Counter::UnreachableSent)
}

/// The answer's IP header: from whom the packet was for, to whom it was from.
#[inline(always)]
fn header<const IP: usize>(packet: &Packet, answer: &mut [u8; LONGEST], protocol: u8, payload: usize) {
    let ip = &mut answer[ETH..ETH + IP];
    ip.fill(0);
    if IP == IPV6 {
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        ip[6] = protocol;
        ip[7] = HOPS;
        ip[8..24].copy_from_slice(&packet.dst);
        ip[24..40].copy_from_slice(&packet.src);
        return;
    }
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((IPV4 + payload) as u16).to_be_bytes());
    // It is its own only fragment, and needs no identification (RFC 6864).
    ip[6] = 0x40;
    ip[8] = HOPS;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&packet.dst[12..]);
    ip[16..20].copy_from_slice(&packet.src[12..]);
    let sum = !fold(sum::<IPV4>(answer, ETH, 0));
    answer[ETH + 10..ETH + 12].copy_from_slice(&sum.to_ne_bytes());
}

/// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1).
#[inline(always)]
fn pseudo<const IP: usize>(answer: &[u8; LONGEST], protocol: u8, payload: usize) -> u32 {
    let rest = u32::from(u16::from(protocol).to_be()) + u32::from((payload as u16).to_be());
    if IP == IPV6 { sum::<32>(answer, ETH + 8, rest) } else { sum::<8>(answer, ETH + 12, rest) }
}

/// The internet checksum's sum (RFC 1071) of some bytes, in memory's order.
#[inline(always)]
fn sum<const LENGTH: usize>(answer: &[u8; LONGEST], at: usize, seed: u32) -> u32 {
    let from = answer[at..at + LENGTH].as_ptr().cast_mut().cast();
    // SAFETY: the helper reads `LENGTH` bytes, a multiple of four, of the answer.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from, LENGTH as u32, seed) as u32 }
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Whether the packet's checksum is left to the device. The helper changes the field of no such packet, and of every
/// other: the sum of one more than before is another.
#[inline(always)]
fn is_left_to_device(ctx: &TcContext, at: usize) -> Option<bool> {
    const TWO_BYTES: u64 = 2;
    let (mut before, mut after) = ([0; 2], [0; 2]);
    load(ctx, at, &mut before)?;
    // SAFETY: a helper without pointers to follow. The field is written over, or the packet dropped.
    if unsafe { bpf_l4_csum_replace(ctx.skb.skb, at as u32, 0, 1, TWO_BYTES) } != 0 {
        return None;
    }
    load(ctx, at, &mut after)?;
    Some(before == after)
}

#[inline(always)]
fn load<const LENGTH: usize>(ctx: &TcContext, at: usize, into: &mut [u8; LENGTH]) -> Option<()> {
    // SAFETY: as many bytes as there is room for.
    let result =
        unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), at as u32, into.as_mut_ptr().cast(), LENGTH as u32) };
    if result == 0 { Some(()) } else { None }
}

/// Puts the answer in the packet's place. That takes off what it had of a larger one (GSO); a packet inside of another
/// (an offloaded tunnel) the kernel does not cut, and it stays unanswered.
#[inline(always)]
fn write<const LENGTH: usize>(ctx: &TcContext, answer: &[u8; LONGEST]) -> Option<()> {
    // SAFETY: helpers with the context; the second reads `LENGTH` bytes of the answer, which has as many.
    let done = unsafe {
        let skb = ctx.skb.skb;
        bpf_skb_change_tail(skb, LENGTH as u32, 0) == 0
            && bpf_skb_store_bytes(
                skb.cast(),
                0,
                answer.as_ptr().cast(),
                LENGTH as u32,
                u64::from(BPF_F_RECOMPUTE_CSUM),
            ) == 0
    };
    if done { Some(()) } else { None }
}
