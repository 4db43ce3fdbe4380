//! A packet's headers, read into one value. No verdicts here.
//!
//! Everything is read by offset through the kernel, so no header length is trusted. A packet without options,
//! extension headers or fragments costs two reads: one to the end of the IP header, one of the transport header. What
//! is out of the ordinary is read in `packet/odd.rs`, ICMP in `packet/icmp.rs`. IPv4 addresses are v4-mapped; an IPv6
//! packet that wears a v4-mapped address is refused, else it would pass for IPv4. Called by every hook.

mod address;
mod head;
mod icmp;
mod odd;
mod transport;

use address::is_group;
pub(crate) use address::{is_link_local, is_unspecified};
pub(crate) use odd::DONT_FRAGMENT;

use crate::event::Note;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use core::cell::Cell;
use sluice_bpf_abi::{Address, Counter, life};

const ETH_HEADER: u32 = 14;
pub(crate) const ETH_IP: u16 = 0x0800_u16.to_be();
pub(crate) const ETH_IPV6: u16 = 0x86dd_u16.to_be();
const ETH_ARP: u16 = 0x0806_u16.to_be();
/// Tags in the frame itself: 802.1Q, 802.1ad, and what came before the latter.
const ETH_VLAN: [u16; 3] = [0x8100_u16.to_be(), 0x88a8_u16.to_be(), 0x9100_u16.to_be()];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// `::ffff:0.0.0.0`: an IPv4 address is read into its last four bytes.
const MAPPED_ZERO: Address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];

pub(crate) const FLAG_FIN: u8 = 0x01;
const FLAG_SYN: u8 = 0x02;
const FLAG_RST: u8 = 0x04;
pub(crate) const FLAG_ACK: u8 = 0x10;
/// TCP's flags but PSH, ECE and CWR, which may go with any.
pub(crate) const TCP_KINDS: u8 = 0x37;
/// Those combinations that a TCP sends: SYN, SYN URG, SYN ACK, RST, RST ACK, FIN ACK, FIN ACK URG, ACK, ACK URG. The same
/// that the kernel's conntrack calls valid; every other is a scan.
const TCP_SENT: u64 =
    1 << 0x02 | 1 << 0x22 | 1 << 0x12 | 1 << 0x04 | 1 << 0x14 | 1 << 0x11 | 1 << 0x31 | 1 << 0x10 | 1 << 0x30;

/// Ethernet's header and IPv6's.
const HEAD: usize = 54;
/// An ARP packet in the shortest frame, with a trailer that some devices leave.
const MAX_ARP: u32 = 64;
const TCP_HEADER: u32 = 20;
const UDP_HEADER: u32 = 8;
/// SCTP's common header and the first chunk's.
const SCTP_HEADER: u32 = 16;

// The chunks of SCTP that open and close an association (RFC 9260, section 3.2). Where several are in one packet, the
// first is what counts: an INIT travels alone (section 4.3), as do the others but for an ABORT.
const CHUNK_INIT: u8 = 1;
const CHUNK_ABORT: u8 = 6;
const CHUNK_SHUTDOWN: u8 = 7;
const CHUNK_SHUTDOWN_ACK: u8 = 8;
const CHUNK_SHUTDOWN_COMPLETE: u8 = 14;

/// What a packet is, apart from its addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A transport packet.
    Flow,
    /// ARP: `src` is the claimed sender.
    Arp,
    /// Neighbour solicitation, router solicitation or multicast listener report.
    Neighbour,
    /// Neighbour advertisement: the claimed target is [`Packet::target`].
    Advertisement,
    /// A router's word (advertisement, redirect): never a pod's.
    Router,
    /// An ICMP error; `about` of [`Packet`] is filled.
    Error,
    /// A fragment that is not its packet's first: it has addresses, and nothing else is known of it.
    Later,
}

/// What a packet has beside its headers: bits of [`Packet::shape`].
mod shape {
    /// A fragment, or an IPv6 packet that says it is the only one of itself (RFC 6946).
    pub(super) const FRAGMENT: u8 = 1;
    /// There are more fragments of the packet than this one.
    pub(super) const PARTS: u8 = 2;
    /// IPv6 extension headers or IPv4 options, which were passed over.
    pub(super) const EXTENDED: u8 = 4;
}

/// The headers that matter.
#[repr(C)]
pub(crate) struct Packet {
    pub(crate) src: Address,
    pub(crate) dst: Address,
    /// Whom neighbours' talk is about.
    pub(crate) target: Address,
    pub(crate) sport: [u8; 2],
    pub(crate) dport: [u8; 2],
    /// Of ICMP: the number of its type.
    pub(crate) icmp: [u8; 2],
    /// Of ICMP: the number of the type that it is the answer to.
    pub(crate) answers: [u8; 2],
    /// Where the transport header is in the frame.
    l4: u32,
    /// Where the IP packet ends in the frame: what comes after it is padding, and no stack reads it.
    pub(crate) end: u32,
    /// Where what was judged of the packet ends in the frame.
    pub(crate) judged: u32,
    /// Of a fragment: where in the frame the part that was fragmented begins.
    base: u32,
    /// Of a fragment: where its bytes belong.
    offset: u32,
    /// Of a fragment: the packet's identification; of IPv4 in the first two bytes.
    id: [u8; 4],
    /// The frame as far as the end of the IP header, without options.
    pub(crate) head: [u8; HEAD],
    /// Of neighbours' talk: the hardware address that it claims for its sender.
    hardware: [u8; 6],
    claims: bool,
    /// Of neighbours' talk: it has nothing in it but what it needs.
    pub(crate) is_terse: bool,
    pub(crate) protocol: u8,
    /// Of TCP its flags, of SCTP the type of the first chunk.
    flags: u8,
    shape: u8,
    pub(crate) form: Form,
    pub(crate) v6: bool,
    is_refused: bool,
    /// The epoch that it is judged under.
    pub(crate) epoch: Cell<u64>,
    /// Why it is to be dropped, where it cannot be read.
    refused: Counter,
    /// What events say of it beside.
    pub(crate) note: Note,
}

/// What a fragment has in common with the others of its packet, and where it belongs.
pub(crate) struct Part {
    /// The identification; of IPv4 in the first two bytes.
    pub(crate) id: [u8; 4],
    /// The IPv4 protocol.
    pub(crate) protocol: u8,
    /// Where its bytes belong.
    pub(crate) offset: u32,
    /// Of a first fragment: the first byte behind what was judged.
    pub(crate) header: u32,
}

/// Which packet of the scratch map: a program has 512 bytes of stack, and two of these are much of it.
const OUTER: u32 = 0;
const INNER: u32 = 1;
const PACKETS: usize = 2;

#[btf_map]
static PACKETS_READ: PerCpuArray<Packet, PACKETS> = PerCpuArray::new();

// Functions of their own, and not inlined: what they need of the stack is free again for the verdict. Each has a name
// that is the same wherever the object is built. The kernel checks each by itself (Linux 5.6).

/// What a reading returns where it is of an ICMP error.
const WITH_QUOTE: u32 = 1;

/// Reads a packet into the scratch map.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_packet(skb: *mut __sk_buff) -> u32 {
    Packet::reading(OUTER, |packet| packet.read_whatever(&TcContext::new(skb)))
}

/// The same of one that came from or goes to the proxy.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_plain_packet(skb: *mut __sk_buff) -> u32 {
    Packet::reading(OUTER, |packet| packet.read_without_options(&TcContext::new(skb)))
}

/// Reads what the error that was read is about.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_quoted_packet(skb: *mut __sk_buff) -> u32 {
    Packet::reading(INNER, |packet| packet.read_quoted(&TcContext::new(skb)))
}

impl Packet {
    #[inline(always)]
    fn reading(which: u32, read: impl FnOnce(&mut Self) -> Result<(), Counter>) -> u32 {
        let Some(packet) = Self::scratch(which) else { return 0 };
        match read(packet) {
            Ok(()) => packet.is_refused = false,
            Err(reason) => packet.refused = reason,
        }
        if packet.form == Form::Error { WITH_QUOTE } else { 0 }
    }

    #[inline(always)]
    fn scratch(which: u32) -> Option<&'static mut Self> {
        let packet = PACKETS_READ.get_ptr_mut(which)?;
        // SAFETY: this CPU's own, and programs do not nest on one CPU; each hook takes each place once.
        let packet = unsafe { &mut *packet };
        packet.src = MAPPED_ZERO;
        packet.dst = MAPPED_ZERO;
        packet.target = MAPPED_ZERO;
        packet.sport = [0; 2];
        packet.dport = [0; 2];
        packet.icmp = [0; 2];
        packet.answers = [0; 2];
        packet.claims = false;
        packet.is_terse = true;
        packet.is_refused = true;
        packet.refused = Counter::Malformed;
        packet.flags = 0;
        packet.shape = 0;
        packet.protocol = 0;
        packet.form = Form::Flow;
        packet.v6 = false;
        packet.l4 = 0;
        packet.end = 0;
        packet.judged = 0;
        packet.base = 0;
        packet.offset = 0;
        packet.id = [0; 4];
        packet.epoch.set(0);
        packet.note = Note::default();
        Some(packet)
    }

    /// The packet that this program was called for, as far as it has been read.
    #[inline(always)]
    pub(crate) fn at_hand() -> Option<&'static Self> {
        let packet = PACKETS_READ.get_ptr_mut(OUTER)?;
        // SAFETY: as in `scratch`. What is written from here on is in cells.
        Some(unsafe { &*packet })
    }

    /// Reads the headers, and those of the packet that an ICMP error is about.
    #[inline(always)]
    pub(crate) fn read(ctx: &TcContext) {
        if read_packet(ctx.skb.skb) == WITH_QUOTE {
            read_quoted_packet(ctx.skb.skb);
        }
    }

    /// The same at the proxy's ends, where nothing but whole packets without anything beside them comes.
    #[inline(always)]
    pub(crate) fn read_plain(ctx: &TcContext) -> Result<&'static Self, Counter> {
        if read_plain_packet(ctx.skb.skb) == WITH_QUOTE {
            read_quoted_packet(ctx.skb.skb);
        }
        Self::current()
    }

    /// What was read; the reason to drop it where it cannot be.
    #[inline(always)]
    pub(crate) fn current() -> Result<&'static Self, Counter> {
        Self::outcome(OUTER)
    }

    /// The packet that an ICMP error is about, as its sender sent it. Only its beginning is there.
    #[inline(always)]
    pub(crate) fn about(&self) -> Result<&'static Self, Counter> {
        Self::outcome(INNER)
    }

    /// What a function of its own has read into the scratch map.
    #[inline(always)]
    fn outcome(which: u32) -> Result<&'static Self, Counter> {
        let packet = PACKETS_READ.get_ptr(which).ok_or(Counter::Malformed)?;
        // SAFETY: this CPU's own, and nobody writes it until the program has returned.
        let packet = unsafe { &*packet };
        if packet.is_refused { Err(packet.refused) } else { Ok(packet) }
    }

    #[inline(always)]
    fn read_whatever(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        // SAFETY: reads of the context that the verifier allows.
        let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol as u16, (*ctx.skb.skb).vlan_present) };
        // A tag that the kernel has taken off, or one that it has not.
        if vlan != 0 || ETH_VLAN.contains(&protocol) {
            return Err(Counter::Vlan);
        }
        match protocol {
            ETH_IP => self.read_v4(ctx),
            ETH_IPV6 => self.read_v6(ctx),
            ETH_ARP => self.read_arp(ctx),
            _ => Err(Counter::NotIp),
        }
    }

    #[inline(always)]
    fn read_without_options(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        // SAFETY: a read of the context that the verifier allows.
        match unsafe { (*ctx.skb.skb).protocol as u16 } {
            ETH_IP => {
                self.read_v4_header(ctx)?;
            }
            ETH_IPV6 => self.read_v6_header(ctx)?,
            _ => return Err(Counter::Stray),
        }
        if self.shape != 0 || odd::is_extension(self.protocol) {
            return Err(Counter::Stray);
        }
        self.read_l4(ctx)
    }

    /// Whether this opens a connection of TCP or an association of SCTP.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        match self.protocol {
            TCP => self.flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN,
            SCTP => self.flags == CHUNK_INIT,
            _ => false,
        }
    }

    /// Whether its protocol has connections, which something opens and something closes.
    #[inline(always)]
    pub(crate) fn is_connected(&self) -> bool {
        self.protocol == TCP || self.protocol == SCTP
    }

    /// Whether it breaks a connection off.
    #[inline(always)]
    pub(crate) fn is_reset(&self) -> bool {
        match self.protocol {
            TCP => self.flags & FLAG_RST != 0,
            SCTP => self.flags == CHUNK_ABORT,
            _ => false,
        }
    }

    /// What it says of the life of its flow: bits of [`life`] that close; `outward` if it is its opener who speaks.
    #[inline(always)]
    pub(crate) fn says(&self, outward: bool) -> u8 {
        let closed = if outward { life::CLOSED_OUT } else { life::CLOSED_IN };
        match (self.protocol, self.flags) {
            (TCP, flags) if flags & FLAG_RST != 0 => life::RESET,
            (TCP, flags) if flags & FLAG_FIN != 0 => closed,
            (SCTP, CHUNK_ABORT) => life::RESET,
            (SCTP, CHUNK_SHUTDOWN | CHUNK_SHUTDOWN_ACK) => closed,
            (SCTP, CHUNK_SHUTDOWN_COMPLETE) => life::CLOSED,
            _ => 0,
        }
    }

    /// Whether a packet in the middle of a connection says more than that it got something, or ends.
    #[inline(always)]
    pub(crate) fn is_carrying(&self) -> bool {
        self.says(true) == 0 && (self.protocol == SCTP || self.end > self.judged)
    }

    /// Whether the destination is a group: multicast, or everybody on the link.
    #[inline(always)]
    pub(crate) fn is_group(&self) -> bool {
        is_group(self.v6, &self.dst)
    }

    /// The frame's destination.
    #[inline(always)]
    pub(crate) fn to(&self) -> [u8; 6] {
        [0, 1, 2, 3, 4, 5].map(|at| self.head[at])
    }

    /// The frame's sender.
    #[inline(always)]
    pub(crate) fn from(&self) -> [u8; 6] {
        [6, 7, 8, 9, 10, 11].map(|at| self.head[at])
    }

    /// Whether the frame comes from this hardware address, and says no other.
    #[inline(always)]
    pub(crate) fn is_from(&self, mac: &[u8; 6]) -> bool {
        self.from() == *mac && (!self.claims || self.hardware == *mac)
    }

    /// Whether its sender may be told that it was refused: never about an answer of that kind, what is for many, or what
    /// is not whole (RFC 1122, section 3.2.2; RFC 4443, section 2.4). What has headers beside its own is not answered
    /// either, since the answer takes their place.
    #[inline(always)]
    pub(crate) fn is_answerable(&self) -> bool {
        if self.form != Form::Flow || self.is_odd() || self.is_group() || is_group(self.v6, &self.src) {
            return false;
        }
        match self.protocol {
            TCP => !self.is_reset(),
            // Only requests are known to be no errors.
            ICMP | ICMPV6 => icmp::is_request(self.v6, self.icmp[1]),
            _ => true,
        }
    }

    /// Whether it has anything beside its headers, or is not whole.
    #[inline(always)]
    pub(crate) fn is_odd(&self) -> bool {
        self.shape != 0
    }

    /// Why the proxy, which is handed one packet at a time and reads no options, cannot have this one.
    #[inline(always)]
    pub(crate) fn unfit_for_proxy(&self) -> Option<Counter> {
        if self.shape & shape::FRAGMENT != 0 {
            return Some(Counter::Fragment);
        }
        (self.shape & shape::EXTENDED != 0).then_some(Counter::Extension)
    }

    /// Whether this is the first of a packet's fragments, and there are others.
    #[inline(always)]
    pub(crate) fn is_first(&self) -> bool {
        self.shape & shape::PARTS != 0 && self.form != Form::Later
    }

    /// What a fragment says of itself.
    #[inline(always)]
    pub(crate) fn part(&self) -> Part {
        Part {
            id: self.id,
            protocol: if self.v6 { 0 } else { self.protocol },
            offset: self.offset,
            header: self.judged.wrapping_sub(self.base),
        }
    }
}

/// Whether the kernel has not yet cut this into packets as they go over a wire.
#[inline(always)]
fn is_gso(ctx: &TcContext) -> bool {
    // SAFETY: a read of the context that the verifier allows (Linux 5.7).
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

#[inline(always)]
fn load<T>(ctx: &TcContext, offset: u32) -> Result<T, Counter> {
    ctx.load(offset as usize).map_err(|_| Counter::Malformed)
}

/// Reads what is left of an address after its first bytes.
#[inline(always)]
fn load_into(ctx: &TcContext, offset: u32, address: &mut Address, first: usize) -> Result<(), Counter> {
    // SAFETY: the bytes from `first` to the end of the address, which is 16 long.
    let result = unsafe {
        let to = address.as_mut_ptr().add(first);
        bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to.cast(), (16 - first) as u32)
    };
    if result == 0 { Ok(()) } else { Err(Counter::Malformed) }
}
