//! The flow table: what is remembered of a connection, for how long, and how much of it an endpoint may have.
//!
//! No verdicts here. Hook D remembers what the proxy opens, `steer.rs` what was judged.

use crate::event;
use crate::maps::{FLOWS, limits, quota, take_above};
use crate::packet::Packet;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use sluice_bpf_abi::{
    Counter, FlowEntry, FlowKey, FlowKind, FlowState, Limits, Quota, flow_flag, idle, life,
};

/// For how long the number of an endpoint's flows is believed after user space has counted them. It counts every few
/// seconds; without it what times out is never subtracted, and an agent that is gone must refuse nobody.
const TRUST: u64 = 30_000_000_000;
const NOEXIST: u64 = 1;

/// The key of a packet in the direction it travels.
#[inline(always)]
pub(crate) fn forward(ifindex: u32, kind: FlowKind, packet: &Packet) -> FlowKey {
    FlowKey {
        ifindex,
        kind: kind as u8,
        protocol: packet.protocol,
        icmp: packet.icmp,
        src: packet.src,
        dst: packet.dst,
        sport: packet.sport,
        dport: packet.dport,
    }
}

/// The key of the flow that a packet answers. An ICMP packet that is no reply has one that no flow has.
#[inline(always)]
pub(crate) fn backward(ifindex: u32, kind: FlowKind, packet: &Packet) -> FlowKey {
    FlowKey {
        ifindex,
        kind: kind as u8,
        protocol: packet.protocol,
        icmp: packet.answers,
        src: packet.dst,
        dst: packet.src,
        sport: packet.dport,
        dport: packet.sport,
    }
}

/// The time as flows are stamped with it: to a few milliseconds, which costs a tenth of the exact one. Linux 5.11 or
/// later; an older kernel refuses the programs.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// What is to be remembered of a flow that begins now.
#[inline(always)]
pub(crate) fn entry(epoch: u64, state: FlowState, flags: u8, life: u8, rule: u32) -> FlowEntry {
    FlowEntry { epoch, seen: now(), state: state as u8, flags, life, rule, ..FlowEntry::default() }
}

/// The living entry of a flow.
#[inline(always)]
pub(crate) fn recall(key: &FlowKey) -> Option<&'static mut FlowEntry> {
    let entry = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the kernel keeps the element until the program returns. Races with other CPUs on its fields
    // are of single words, and what they race about is the same verdict.
    let entry = unsafe { &mut *entry };
    if entry.is_over(key.protocol, now()) { None } else { Some(entry) }
}

/// Remembers a flow on its endpoint's account. The reason where there is no room.
///
/// What goes to the proxy, and whose opener has not shown yet that it is there, takes half of what the endpoint may have
/// at most: a forged SYN costs its sender nothing, and the proxy needs no entry to answer it.
#[inline(always)]
pub(crate) fn remember(key: &FlowKey, entry: &FlowEntry) -> Result<(), Counter> {
    // In the place of one that is over, or that a SYN begins anew: that is counted already.
    if let Some(old) = FLOWS.get_ptr(key) {
        // SAFETY: as in `recall`.
        let old = unsafe { &*old };
        let alike = old.state == entry.state && old.epoch == entry.epoch && old.life == 0;
        if alike && !old.is_over(key.protocol, entry.seen) {
            event::again();
        }
        return insert(key, entry, 0);
    }
    let direction = direction(key);
    let Some(limits) = limits() else { return insert(key, entry, NOEXIST) };
    let Some(quota) = quota(key.ifindex) else {
        // No room to count for one more endpoint: nobody has flows without a limit for that.
        let free = limits.flows == [0; 2] && limits.opens == [0; 2];
        return if free { insert(key, entry, NOEXIST) } else { Err(Counter::FlowQuota) };
    };
    let proven = entry.state != FlowState::Proxied as u8 || entry.life & life::CONFIRMED != 0;
    admit(quota, limits, direction, proven || direction != 0, entry.seen)?;
    insert(key, entry, NOEXIST)?;
    *counted(quota, direction) += 1;
    Ok(())
}

/// Remembers a flow on nobody's account: the proxy's own, whose client is counted and which has limits of its own, and
/// what a socket of the node opened.
#[inline(always)]
pub(crate) fn remember_free(key: &FlowKey, entry: &FlowEntry) -> bool {
    insert(key, entry, 0).is_ok()
}

/// Sends the packets of a flow, if there is one, the long way, until that has let one pass again.
#[inline(always)]
pub(crate) fn lengthen(key: &FlowKey) {
    if let Some(entry) = FLOWS.get_ptr_mut(key) {
        // SAFETY: as in `recall`.
        unsafe { (*entry).fast = [0; 2] }
    }
}

/// Forgets a flow. Whether there was one.
#[inline(always)]
pub(crate) fn forget(key: &FlowKey) -> bool {
    let gone = FLOWS.remove(key).is_ok();
    if gone
        && key.kind != FlowKind::Upstream as u8
        && let Some(quota) = quota(key.ifindex)
    {
        *counted(quota, direction(key)) -= 1;
    }
    gone
}

#[inline(always)]
fn insert(key: &FlowKey, entry: &FlowEntry, flags: u64) -> Result<(), Counter> {
    FLOWS.insert(key, entry, flags).map_err(|_| Counter::FlowTable)
}

/// 0 ingress, 1 egress.
#[inline(always)]
fn direction(key: &FlowKey) -> usize {
    usize::from(key.kind == FlowKind::Egress as u8)
}

/// The target has no atomic addition: what CPUs do at once may be lost, until user space counts again.
#[inline(always)]
fn counted(quota: &mut Quota, direction: usize) -> &mut i64 {
    if direction == 0 { &mut quota.flows[0] } else { &mut quota.flows[1] }
}

/// Whether the endpoint may have one more flow; half of what it may have is for those that are `proven`.
#[inline(always)]
fn admit(
    quota: &mut Quota,
    limits: &Limits,
    direction: usize,
    proven: bool,
    now: u64,
) -> Result<(), Counter> {
    let (most, rate) = match direction {
        0 => (limits.flows[0], limits.opens[0]),
        _ => (limits.flows[1], limits.opens[1]),
    };
    let has = *counted(quota, direction);
    let (room, left) = if proven { (most, 0) } else { (most / 2, rate / 2) };
    if most != 0 && has >= i64::from(room) && now.saturating_sub(quota.counted) < TRUST {
        return Err(Counter::FlowQuota);
    }
    let bucket = if direction == 0 { &mut quota.opens[0] } else { &mut quota.opens[1] };
    if take_above(bucket, rate, left, now) { Ok(()) } else { Err(Counter::OpenRate) }
}

/// Notes a packet of a flow; `outward` if it travels as its originator's packets do. What is over with it is
/// forgotten, so that a connection takes no room once it is closed: nothing may be written to the entry after.
///
/// A late packet of such a connection is judged by the rows, as any that comes in the middle.
#[inline(always)]
pub(crate) fn touch(key: &FlowKey, entry: &mut FlowEntry, packet: &Packet, outward: bool) {
    if note(entry, packet, outward) {
        forget(key);
    }
}

/// The same where another hook comes after, which forgets it. Whether the flow is over.
///
/// A reset is believed where it costs no more than a look at the rows; the proxy's flows outlive it for a moment,
/// because somebody may have forged it and the rows do not say whose they are.
#[inline(always)]
pub(crate) fn note(entry: &mut FlowEntry, packet: &Packet, outward: bool) -> bool {
    let (was, says) = (entry.life, packet.says(outward));
    let mut is = was | says;
    if !outward {
        is |= life::ANSWERED;
    } else if was & life::ANSWERED != 0 {
        is |= life::CONFIRMED;
    }
    let now = now();
    // Not written where nothing changes: other CPUs read the same line.
    if is != was {
        entry.life = is;
    }
    if now.saturating_sub(entry.seen) >= idle::GRAIN {
        entry.seen = now;
    }
    // The packet after the last that closes acknowledges it.
    let closed = was & life::CLOSED == life::CLOSED && says == 0;
    let broken = is & life::RESET != 0 && entry.state == FlowState::Direct as u8;
    // Of what the node opened no row speaks: a late packet would be refused.
    packet.is_connected() && (closed || broken) && entry.flags & flow_flag::HOST == 0
}
