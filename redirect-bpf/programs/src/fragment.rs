//! Fragments. The first of a packet has the ports and is judged; the others pass as it did, at the same hook, under the
//! same generation, for a while, and not over what was judged of it.
//!
//! Reassembly is the receiver's, so what it may be given decides: it gets later fragments only of packets whose first
//! one it was allowed, and none that changes its header (RFC 1858, RFC 3128, RFC 5722). Called by hooks A and B.

use crate::Fate;
use crate::packet::{Form, Packet, Part};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Counter, FRAGMENT_SLOTS, FlowKind, FragmentEntry, FragmentKey, MAX_FRAGMENTS};

/// How long the rest of a packet may take. Linux gives the fragments of IPv4 30 s (`net.ipv4.ipfrag_time`), RFC 8200 those
/// of IPv6 60 s; what comes later than the shorter of both is of a packet sent again.
const LIFE: u64 = 30_000_000_000;

#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry, { MAX_FRAGMENTS as usize }> = LruHashMap::new();

/// The entry that is being written: the stack has no room for it.
#[btf_map]
static FRAGMENT_WRITTEN: PerCpuArray<FragmentEntry, 1> = PerCpuArray::new();

/// What becomes of a packet that was judged by its addresses and ports. Most are whole and have no more to say.
#[inline(always)]
pub(crate) fn settle(ctx: &TcContext, kind: FlowKind, fate: Fate) -> Fate {
    match Packet::current() {
        Ok(packet) if packet.is_odd() => {
            Fate::from_code(settle_odd_packet(ctx.skb.skb, kind as u32, fate.code()))
        }
        _ => fate,
    }
}

/// Of a fragmented packet the first part lets the others follow; the proxy, which sees one packet at a time, gets none
/// of them, nor what has headers that it does not read.
// A function of its own: it is rarely come by, and the stack of the others has no room for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle_odd_packet(skb: *mut __sk_buff, kind: u32, code: u32) -> u32 {
    let fate = Fate::from_code(code);
    let Ok(packet) = Packet::current() else { return fate.code() };
    // SAFETY: a read of the context that the verifier allows.
    let ifindex = unsafe { (*skb).ifindex };
    let fate = match fate {
        Fate::ToProxy(reason) => match packet.unfit_for_proxy() {
            Some(unfit) => Fate::Drop(unfit),
            None => Fate::ToProxy(reason),
        },
        Fate::Pass(_) if packet.form == Form::Later => later(ifindex, kind as u8, packet),
        Fate::Pass(reason) if packet.is_first() => match remember(ifindex, kind as u8, packet) {
            true => Fate::Pass(reason),
            false => Fate::Drop(Counter::Fragment),
        },
        fate => fate,
    };
    fate.code()
}

/// What becomes of a fragment that is not its packet's first.
#[inline(always)]
fn later(ifindex: u32, kind: u8, packet: &Packet) -> Fate {
    let part = packet.part();
    let Some(entry) = FRAGMENTS.get_ptr(key(ifindex, kind, packet, &part)) else {
        return Fate::Drop(Counter::Fragment);
    };
    // SAFETY: the kernel keeps the element until the program returns, and entries are only ever replaced whole.
    let entry = unsafe { &*entry };
    let same = entry.id == part.id
        && entry.protocol == part.protocol
        && entry.src == packet.src
        && entry.dst == packet.dst;
    let fresh = entry.epoch == packet.epoch.get() && now().saturating_sub(entry.seen) <= LIFE;
    if !same || !fresh {
        return Fate::Drop(Counter::Fragment);
    }
    if part.offset < entry.header {
        return Fate::Drop(Counter::FragmentOverlap);
    }
    Fate::Pass(Counter::FragmentPassed)
}

#[inline(always)]
fn remember(ifindex: u32, kind: u8, packet: &Packet) -> bool {
    let part = packet.part();
    let Some(entry) = FRAGMENT_WRITTEN.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own, and programs do not nest on one CPU.
    let entry = unsafe { &mut *entry };
    entry.seen = now();
    entry.epoch = packet.epoch.get();
    entry.src = packet.src;
    entry.dst = packet.dst;
    entry.id = part.id;
    entry.header = part.header;
    entry.protocol = part.protocol;
    FRAGMENTS.insert(key(ifindex, kind, packet, &part), &*entry, 0).is_ok()
}

/// Where a packet's first fragment is remembered. Packets numbered one by one get places one by one.
#[inline(always)]
fn key(ifindex: u32, kind: u8, packet: &Packet, part: &Part) -> FragmentKey {
    let sum = part.id[1]
        .wrapping_add(part.id[3])
        .wrapping_add(part.protocol)
        .wrapping_add(packet.src[15])
        .wrapping_add(packet.dst[15]);
    FragmentKey { ifindex, kind, slot: sum & (FRAGMENT_SLOTS - 1), pad: [0; 2] }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
