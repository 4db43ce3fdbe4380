//! Events: what user space is told of the fate of a packet at hooks A and B.
//!
//! The first packet of a flow, each refusal, and once each flow that is cut; packets of known flows are not told of
//! and cost nothing here. What an endpoint refuses and what it lets pass are bounded apart, and passed flows leave half
//! of the ring to refusals, so that no flood hides them. Decides nothing. Called by `main.rs` with each fate; those
//! who judge leave a note for it.

use crate::Fate;
use crate::maps::{Generation, count, limits, quota, take};
use crate::packet::Packet;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_ringbuf_query};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use core::cell::Cell;
use sluice_bpf_abi::{
    Counter, EVENT_BYTES, EVENT_BYTES_PASSED, Event, EventVerdict, FlowEntry, FlowKind, flow_flag,
};

#[btf_map]
static EVENTS: RingBuf<Event, { EVENT_BYTES as usize }> = RingBuf::new();

/// `BPF_RB_AVAIL_DATA`: the bytes that nobody has read yet.
const UNREAD: u64 = 0;

/// What an event says beyond the packet's headers. Beside the packet in its scratch map, and wiped with it: an
/// argument for it through every step would cost the stack that a program does not have.
#[derive(Default)]
pub(crate) struct Note {
    class: Cell<u32>,
    rule: Cell<u32>,
    /// The flow was opened by the other end.
    backward: Cell<bool>,
    /// A flow was cut, and nobody has told it yet.
    cut: Cell<bool>,
    answered: Cell<bool>,
    /// The packet was sent again: the flow has been told.
    again: Cell<bool>,
}

/// The note of the packet at hand.
#[inline(always)]
fn note(then: impl FnOnce(&Note)) {
    if let Some(packet) = Packet::at_hand() {
        then(&packet.note);
    }
}

/// A row was asked: of this class, and this rule decides it.
#[inline(always)]
pub(crate) fn judged(class: u32, rule: u32) {
    note(|note| {
        note.class.set(class);
        note.rule.set(rule);
    });
}

/// This rule decided after all.
#[inline(always)]
pub(crate) fn decided(rule: u32) {
    note(|note| note.rule.set(rule));
}

/// The flow that this packet is of was opened by the other end.
#[inline(always)]
pub(crate) fn backward() {
    note(|note| note.backward.set(true));
}

/// A packet of a flow that was cut: the first one tells it.
#[inline(always)]
pub(crate) fn cut(entry: &mut FlowEntry, outward: bool) {
    if entry.flags & flow_flag::TOLD != 0 {
        return;
    }
    entry.flags |= flow_flag::TOLD;
    let rule = entry.rule;
    note(|note| {
        note.rule.set(rule);
        note.backward.set(!outward);
        note.cut.set(true);
    });
}

/// The same packet has opened the same flow before, and nobody has answered yet.
#[inline(always)]
pub(crate) fn again() {
    note(|note| note.again.set(true));
}

/// What is refused is answered.
#[inline(always)]
pub(crate) fn answered() {
    note(|note| note.answered.set(true));
}

/// What an event of this fate says; `None`: there is none.
#[inline(always)]
const fn verdict(fate: &Fate) -> Option<(EventVerdict, Counter)> {
    match *fate {
        Fate::Pass(reason) => match reason {
            Counter::Allowed | Counter::FailOpen | Counter::Unremembered => {
                Some((EventVerdict::Allow, reason))
            }
            Counter::Audited => Some((EventVerdict::Audit, reason)),
            _ => None,
        },
        Fate::ToProxy(Counter::ToProxy) => Some((EventVerdict::ToProxy, Counter::ToProxy)),
        Fate::ToProxy(_) | Fate::Straight(..) => None,
        Fate::Drop(Counter::Cut) => Some((EventVerdict::Cut, Counter::Cut)),
        // A bridge floods; nobody asked for anything.
        Fate::Drop(Counter::NotMine) => None,
        Fate::Drop(reason) | Fate::Answer(reason) => Some((EventVerdict::Deny, reason)),
    }
}

/// Whether it has been told.
#[inline(always)]
fn told(verdict: EventVerdict, note: &Note) -> bool {
    match verdict {
        EventVerdict::Allow | EventVerdict::Audit | EventVerdict::ToProxy => note.again.get(),
        EventVerdict::Cut => !note.cut.get(),
        EventVerdict::Deny => false,
    }
}

/// Tells what became of a packet that an endpoint sends (`Egress`) or is sent (`Ingress`).
#[inline(always)]
pub(crate) fn tell(ctx: &TcContext, hook: FlowKind, fate: Fate) {
    // Most packets are of known flows.
    if verdict(&fate).is_some() {
        tell_packet(ctx.skb.skb, hook as u32, fate.code());
    }
}

// A function of its own: it is rarely come by, and the stack of the others has no room for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_packet(skb: *mut __sk_buff, hook: u32, code: u32) -> u32 {
    let Some((verdict, reason)) = verdict(&Fate::from_code(code)) else { return 0 };
    let Some(packet) = Packet::at_hand() else { return 0 };
    let generation = Generation::current();
    let passed = matches!(verdict, EventVerdict::Allow | EventVerdict::Audit);
    // Where the other end is on this node too, its hook speaks for both, and refuses or tells it.
    let elsewhere = passed && hook == FlowKind::Egress as u32 && generation.endpoint(&packet.dst).is_some();
    if elsewhere || told(verdict, &packet.note) {
        return 0;
    }
    // SAFETY: reads of the context that the verifier allows, and a helper without arguments.
    let (ifindex, length, now) = unsafe { ((*skb).ifindex, (*skb).len, bpf_ktime_get_ns()) };
    let refused = matches!(verdict, EventVerdict::Deny | EventVerdict::Cut);
    if !within(ifindex, refused, now) {
        count(Counter::EventLimit);
        return 0;
    }
    let reserved = if !refused && full() { None } else { EVENTS.reserve(0) };
    let Some(mut entry) = reserved else {
        count(Counter::EventLost);
        return 0;
    };
    // SAFETY: as many bytes of the ring as an event has, this program's until they are submitted. Each is written.
    unsafe {
        let event: *mut Event = entry.as_mut_ptr();
        (*event).time = now;
        // Of what no row was asked the list of rules does not matter.
        (*event).epoch = match packet.epoch.get() {
            0 => generation.epoch,
            epoch => epoch,
        };
        (*event).rule = packet.note.rule.get();
        (*event).reason = reason as u32;
        (*event).length = length;
        (*event).verdict = verdict as u8;
        (*event).answered = u8::from(packet.note.answered.get());
        (*event).pad = [0; 2];
        (*event).class = packet.note.class.get();
        write_key(event, ifindex, hook as u8, packet);
    }
    entry.submit(0);
    0
}

/// Whether the endpoint may cause one more event. What it refuses and what passes are counted apart.
#[inline(always)]
fn within(ifindex: u32, refused: bool, now: u64) -> bool {
    let Some(limits) = limits() else { return true };
    // Where there is no room to count, nobody may cause any: they would be without a limit.
    let Some(quota) = quota(ifindex) else { return limits.events == [0; 2] };
    match refused {
        true => take(&mut quota.events[0], limits.events[0], now),
        false => take(&mut quota.events[1], limits.events[1], now),
    }
}

/// Whether so much waits to be read that the rest of the ring is for refusals.
#[inline(always)]
fn full() -> bool {
    // SAFETY: a map of this kind; the kernel takes a map's address for its name.
    unsafe {
        bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast(), UNREAD) > u64::from(EVENT_BYTES_PASSED)
    }
}

/// The flow's key, field by field: on the stack it would take a tenth of it.
///
/// # Safety
/// `event` can be written to.
#[inline(always)]
unsafe fn write_key(event: *mut Event, ifindex: u32, hook: u8, packet: &Packet) {
    // SAFETY: the caller's.
    let key = unsafe { &mut (*event).key };
    key.ifindex = ifindex;
    key.protocol = packet.protocol;
    if packet.note.backward.get() {
        key.kind = FlowKind::Egress as u8 - hook;
        (key.src, key.dst) = (packet.dst, packet.src);
        (key.sport, key.dport, key.icmp) = (packet.dport, packet.sport, packet.answers);
    } else {
        key.kind = hook;
        (key.src, key.dst) = (packet.src, packet.dst);
        (key.sport, key.dport, key.icmp) = (packet.sport, packet.dport, packet.icmp);
    }
}
