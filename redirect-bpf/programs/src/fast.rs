//! The short way: a packet in the middle of a flow that a hook has judged under the generation in force, and that says
//! nothing new. One look-up of the flow table, or two where the packet answers.
//!
//! It gives the fate that the long way would give, or none, and then the long way is gone. What makes sure of that:
//!
//! - What is read here is what `packet.rs` reads of the same packet. Whatever it looks at twice (options, extension
//!   headers, fragments, tags, lengths that contradict each other, all flags but ACK and FIN) goes the long way, and so
//!   does what is not in the linear part of the packet.
//! - An entry lets a packet pass at a hook only if the long way has let one of the same tuple pass there under the same
//!   epoch ([`FlowEntry::fast`]): so the device is an endpoint, the address its own, the row what it was, and all else
//!   that follows from the generation and the tuple is as it was. What does not follow from them is compared: the device
//!   that it came in by (hook B), the frame's sender (hook A), the state and the life of the flow. What may change without
//!   another epoch never gets on the short way: see [`Endpoint::is_lasting`](crate::steer::Endpoint).
//! - The keys are asked in the long way's order. Of the three it asks, the one in the middle, of the proxy's own
//!   connections, is left out: who writes such an entry takes the short way from the one that it hides (`leg.rs`).
//!
//! Called by `main.rs` before anything else.

use crate::Fate;
use crate::flow::now;
use crate::maps::{FLOWS, Generation, config};
use crate::packet::{DONT_FRAGMENT, ETH_IP, ETH_IPV6, FLAG_ACK, FLAG_FIN, TCP, TCP_KINDS, UDP};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use core::ptr;
use sluice_bpf_abi::{Counter, FlowEntry, FlowKey, FlowKind, FlowState, idle, life};

const ETH: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// As far as a TCP header is read: its flags.
const TCP_READ: usize = 14;
const TCP_HEADER: u32 = 20;
const UDP_HEADER: usize = 8;
/// Version 4, and a header without options.
const PLAIN_V4: u8 = 0x45;
/// The third word of an IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// What of a packet makes its key.
struct Head {
    src: [u32; 4],
    dst: [u32; 4],
    /// The source's first.
    ports: u32,
    protocol: u8,
    /// It is its sender's last (TCP FIN).
    is_last: bool,
}

/// A [`FlowKey`] in words, as it lies in memory.
#[repr(C)]
struct Key {
    ifindex: u32,
    kind: u8,
    protocol: u8,
    icmp: [u8; 2],
    src: [u32; 4],
    dst: [u32; 4],
    ports: u32,
}

const _: () = assert!(size_of::<Key>() == size_of::<FlowKey>() && align_of::<Key>() == align_of::<FlowKey>());

/// What becomes of a packet that an endpoint sends (`Egress`) or is sent (`Ingress`), where that is known already.
#[inline(always)]
pub(crate) fn known(ctx: &TcContext, hook: FlowKind) -> Option<Fate> {
    match known_packet(ctx.skb.skb, u32::from(hook as u8 == FlowKind::Egress as u8)) {
        0 => None,
        code => Some(Fate::from_code(code)),
    }
}

// A function of its own: what it needs of the stack is not there beside the long way.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn known_packet(skb: *mut __sk_buff, at_a: u32) -> u32 {
    let hook = if at_a == 0 { FlowKind::Ingress } else { FlowKind::Egress };
    // The code of no fate is 0: that would be a drop.
    find(&TcContext::new(skb), hook).map_or(0, Fate::code)
}

#[inline(always)]
fn find(ctx: &TcContext, hook: FlowKind) -> Option<Fate> {
    let head = read(ctx)?;
    // SAFETY: a read of the context that the verifier allows.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let mut key = Key {
        ifindex,
        kind: hook as u8,
        protocol: head.protocol,
        icmp: [0; 2],
        src: head.src,
        dst: head.dst,
        ports: head.ports,
    };
    if let Some(entry) = look_up(&key) {
        return fate(ctx, hook, entry, &head, true);
    }
    key.kind = FlowKind::Egress as u8 - hook as u8;
    (key.src, key.dst) = (head.dst, head.src);
    key.ports = head.ports.rotate_left(16);
    fate(ctx, hook, look_up(&key)?, &head, false)
}

#[inline(always)]
fn look_up(key: &Key) -> Option<&'static mut FlowEntry> {
    // SAFETY: both are plain old data of the same size and alignment, and lie alike.
    let entry = FLOWS.get_ptr_mut(unsafe { &*ptr::from_ref(key).cast::<FlowKey>() })?;
    // SAFETY: as in `flow::recall`.
    Some(unsafe { &mut *entry })
}

/// `outward` if the packet travels as its originator's packets do.
#[inline(always)]
fn fate(ctx: &TcContext, hook: FlowKind, entry: &mut FlowEntry, head: &Head, outward: bool) -> Option<Fate> {
    let epoch = Generation::current().epoch;
    if !is_granted(ctx, hook, entry, epoch) {
        return None;
    }
    let (was, says) = (entry.life, if head.is_last { closed(outward) } else { 0 });
    // What comes after the end is the long way's.
    if was & life::RESET != 0 || was & life::CLOSED == life::CLOSED {
        return None;
    }
    let now = now();
    let silent = now.saturating_sub(entry.seen);
    // It may be over.
    if silent > idle::LEAST {
        return None;
    }
    // SAFETY: a read of a living element. After that of the epoch: who cuts a flow writes them the other way round.
    let state = unsafe { ptr::read_volatile(&raw const entry.state) };
    let fate = if state == FlowState::Direct as u8 && entry.epoch == epoch {
        Fate::Pass(Counter::Known)
    } else if state == FlowState::Proxied as u8 && outward && config().helper_ifindex != 0 {
        Fate::ToProxy(Counter::ProxiedPacket)
    } else {
        return None;
    };
    let is = was | says | progress(was, outward);
    if is != was {
        entry.life = is;
    }
    if silent >= idle::GRAIN {
        entry.seen = now;
    }
    Some(fate)
}

/// Whether the long way has let a packet of this flow pass here under this epoch, that came as this one.
#[inline(always)]
fn is_granted(ctx: &TcContext, hook: FlowKind, entry: &FlowEntry, epoch: u64) -> bool {
    let at_a = hook as u8 == FlowKind::Egress as u8;
    // SAFETY: a read of a living element. Before the others: who grants it writes it last.
    let granted = unsafe { ptr::read_volatile(&raw const entry.fast[usize::from(at_a)]) };
    // Epoch 0 is that of nothing.
    if granted == 0 || granted != epoch as u32 {
        return false;
    }
    let skb = ctx.skb.skb;
    if !at_a {
        // SAFETY: a read of the context that the verifier allows.
        let arrived = unsafe { (*skb).ingress_ifindex };
        // What came in by no device is a socket's of the node.
        return arrived != 0 && arrived == entry.via;
    }
    let Some(data) = linear(ctx, ETH) else { return false };
    // SAFETY: within the frame, as has just been asked; and six bytes of the entry, at a place that words may have.
    unsafe {
        let mac = (&raw const entry.mac).cast::<u16>();
        let from = (data + 6) as *const u16;
        *mac == *from && *mac.add(1) == *from.add(1) && *mac.add(2) == *from.add(2)
    }
}

const _: () = assert!(core::mem::offset_of!(FlowEntry, mac) % 2 == 0);

#[inline(always)]
const fn closed(outward: bool) -> u8 {
    if outward { life::CLOSED_OUT } else { life::CLOSED_IN }
}

/// As `flow::note` has it.
#[inline(always)]
const fn progress(was: u8, outward: bool) -> u8 {
    if !outward {
        life::ANSWERED
    } else if was & life::ANSWERED != 0 {
        life::CONFIRMED
    } else {
        0
    }
}

/// Reads what is plain.
#[inline(always)]
fn read(ctx: &TcContext) -> Option<Head> {
    // SAFETY: reads of the context that the verifier allows.
    let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol as u16, (*ctx.skb.skb).vlan_present) };
    if vlan != 0 {
        return None;
    }
    match protocol {
        ETH_IP => read_v4(ctx),
        ETH_IPV6 => read_v6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn read_v4(ctx: &TcContext) -> Option<Head> {
    let data = linear(ctx, ETH + IPV4)?;
    // SAFETY: within the frame, as has just been asked.
    let (version, length, part, protocol, src, dst) = unsafe {
        (
            byte(data, ETH),
            half(data, ETH + 2),
            half(data, ETH + 6),
            byte(data, ETH + 9),
            word(data, ETH + 12),
            word(data, ETH + 16),
        )
    };
    let whole = part & !DONT_FRAGMENT.to_be() == 0;
    if version != PLAIN_V4 || !whole {
        return None;
    }
    let end = ETH as u32 + u32::from(u16::from_be(length));
    read_l4::<{ ETH + IPV4 }>(ctx, protocol, end, [0, 0, MAPPED, src], [0, 0, MAPPED, dst])
}

#[inline(always)]
fn read_v6(ctx: &TcContext) -> Option<Head> {
    let data = linear(ctx, ETH + IPV6)?;
    // SAFETY: within the frame, as has just been asked.
    let (version, length, protocol) = unsafe { (byte(data, ETH), half(data, ETH + 4), byte(data, ETH + 6)) };
    // SAFETY: as above.
    let (src, dst) = unsafe {
        (
            [word(data, ETH + 8), word(data, ETH + 12), word(data, ETH + 16), word(data, ETH + 20)],
            [word(data, ETH + 24), word(data, ETH + 28), word(data, ETH + 32), word(data, ETH + 36)],
        )
    };
    // It would have the key of an IPv4 packet. Where only one of its addresses is such, no flow has it.
    let mapped = src[0] | src[1] == 0 && src[2] == MAPPED;
    if version >> 4 != 6 || mapped {
        return None;
    }
    let end = (ETH + IPV6) as u32 + u32::from(u16::from_be(length));
    read_l4::<{ ETH + IPV6 }>(ctx, protocol, end, src, dst)
}

/// The transport header, at `L4`; `end` is where the IP header says that the packet ends. A length of 0 (BIG TCP) leaves
/// no room.
#[inline(always)]
fn read_l4<const L4: usize>(
    ctx: &TcContext,
    protocol: u8,
    end: u32,
    src: [u32; 4],
    dst: [u32; 4],
) -> Option<Head> {
    // SAFETY: a read of the context that the verifier allows.
    let frame = unsafe { (*ctx.skb.skb).len };
    if end > frame || end < L4 as u32 {
        return None;
    }
    let room = end - L4 as u32;
    match protocol {
        TCP => {
            let data = linear(ctx, L4 + TCP_READ)?;
            // SAFETY: within the frame, as has just been asked.
            let (ports, offset, flags) =
                unsafe { (word(data, L4), byte(data, L4 + 12), byte(data, L4 + 13)) };
            let (header, kind) = (u32::from(offset >> 4) * 4, flags & TCP_KINDS);
            let plain = kind & !FLAG_FIN == FLAG_ACK;
            if header < TCP_HEADER || room < header || !plain {
                return None;
            }
            Some(Head { src, dst, ports, protocol, is_last: kind & FLAG_FIN != 0 })
        }
        UDP => {
            let data = linear(ctx, L4 + UDP_HEADER)?;
            // SAFETY: within the frame, as has just been asked.
            let (ports, length) = unsafe { (word(data, L4), half(data, L4 + 4)) };
            let length = u32::from(u16::from_be(length));
            if length < UDP_HEADER as u32 || length > room {
                return None;
            }
            Some(Head { src, dst, ports, protocol, is_last: false })
        }
        _ => None,
    }
}

/// Where the frame begins, if so much of it can be read directly.
#[inline(always)]
fn linear(ctx: &TcContext, bytes: usize) -> Option<usize> {
    let data = ctx.data();
    if data + bytes > ctx.data_end() { None } else { Some(data) }
}

// Where a processor minds, drivers put the IP header at a multiple of four (`NET_IP_ALIGN`), and all that is read as words
// lies well; where it does not, it does not matter.

/// # Safety
/// It is within the frame.
#[inline(always)]
unsafe fn byte(data: usize, at: usize) -> u8 {
    // SAFETY: the caller's.
    unsafe { *((data + at) as *const u8) }
}

/// # Safety
/// It is within the frame.
#[inline(always)]
unsafe fn half(data: usize, at: usize) -> u16 {
    // SAFETY: the caller's.
    unsafe { *((data + at) as *const u16) }
}

/// # Safety
/// It is within the frame.
#[inline(always)]
unsafe fn word(data: usize, at: usize) -> u32 {
    // SAFETY: the caller's.
    unsafe { *((data + at) as *const u32) }
}
