//! A packet's headers, read into one value. No verdicts here.
//!
//! Everything is read by offset through the kernel, so no header length is trusted. IPv4 addresses are
//! v4-mapped; an IPv6 packet that wears a v4-mapped address is refused, else it would pass for IPv4.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Address, Counter, ICMP_NONE, icmp_number, life};

const ETH_HEADER: usize = 14;
const ETH_IP: u16 = 0x0800_u16.to_be();
const ETH_IPV6: u16 = 0x86dd_u16.to_be();
const ETH_ARP: u16 = 0x0806_u16.to_be();

pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// `::ffff:0.0.0.0`: an IPv4 address is read into its last four bytes.
const MAPPED_ZERO: Address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];

const FLAG_FIN: u8 = 0x01;
const FLAG_SYN: u8 = 0x02;
const FLAG_RST: u8 = 0x04;
const FLAG_ACK: u8 = 0x10;

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
}

/// The headers that matter.
#[repr(C)]
pub(crate) struct Packet {
    pub(crate) src: Address,
    pub(crate) dst: Address,
    /// Of a neighbour advertisement.
    pub(crate) target: Address,
    pub(crate) sport: [u8; 2],
    pub(crate) dport: [u8; 2],
    /// Of ICMP: the number of its type.
    pub(crate) icmp: [u8; 2],
    /// Of ICMP: the number of the type that it is the answer to.
    pub(crate) answers: [u8; 2],
    l4: u32,
    pub(crate) protocol: u8,
    /// Of TCP its flags, of SCTP the type of the first chunk.
    flags: u8,
    pub(crate) form: Form,
    pub(crate) v6: bool,
}

/// Which packet of the scratch map: a program has 512 bytes of stack, and two of these are much of it.
const OUTER: u32 = 0;
const INNER: u32 = 1;
const PACKETS: usize = 2;

#[btf_map]
static PACKETS_READ: PerCpuArray<Packet, PACKETS> = PerCpuArray::new();

impl Packet {
    #[inline(always)]
    fn scratch(which: u32) -> Result<&'static mut Self, Counter> {
        let packet = PACKETS_READ.get_ptr_mut(which).ok_or(Counter::Malformed)?;
        // SAFETY: this CPU's own, and programs do not nest on one CPU; each hook takes each place once.
        let packet = unsafe { &mut *packet };
        packet.src = MAPPED_ZERO;
        packet.dst = MAPPED_ZERO;
        packet.target = MAPPED_ZERO;
        packet.sport = [0; 2];
        packet.dport = [0; 2];
        packet.icmp = [0; 2];
        packet.answers = [0; 2];
        packet.flags = 0;
        packet.protocol = 0;
        packet.form = Form::Flow;
        packet.v6 = false;
        packet.l4 = 0;
        Ok(packet)
    }

    /// Reads the headers; the reason to drop it where they cannot be.
    #[inline(always)]
    pub(crate) fn read(ctx: &TcContext) -> Result<&'static Self, Counter> {
        let packet = Self::scratch(OUTER)?;
        // SAFETY: reads of the context that the verifier allows.
        let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol as u16, (*ctx.skb.skb).vlan_present) };
        if vlan != 0 {
            return Err(Counter::NotIp);
        }
        match protocol {
            ETH_IP => packet.read_v4(ctx)?,
            ETH_IPV6 => packet.read_v6(ctx)?,
            ETH_ARP => packet.read_arp(ctx)?,
            _ => return Err(Counter::NotIp),
        }
        Ok(packet)
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
    pub(crate) fn is_carrying(&self, ctx: &TcContext) -> bool {
        if self.protocol == SCTP {
            return self.says(true) == 0;
        }
        // SAFETY: a read of the context that the verifier allows.
        let length = unsafe { (*ctx.skb.skb).len };
        let Ok(offset) = load::<u8>(ctx, self.l4 as usize + 12) else { return false };
        self.says(true) == 0 && length > self.l4 + u32::from(offset >> 4) * 4
    }

    /// Whether the destination is a multicast group.
    #[inline(always)]
    pub(crate) fn is_multicast(&self) -> bool {
        if self.v6 { self.dst[0] == 0xff } else { self.dst[12] >> 4 == 0xe }
    }

    #[inline(always)]
    fn read_arp(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let head: [u8; 6] = load(ctx, ETH_HEADER)?;
        // Ethernet and IPv4, with their lengths.
        if head != [0, 1, 8, 0, 6, 4] {
            return Err(Counter::NotIp);
        }
        self.form = Form::Arp;
        load_into(ctx, ETH_HEADER + 14, &mut self.src, 12)
    }

    /// The addresses of an IPv4 header at an offset; its protocol, fragment field and transport offset.
    #[inline(always)]
    fn read_v4_header(&mut self, ctx: &TcContext, at: usize) -> Result<[u8; 2], Counter> {
        let head: [u8; 12] = load(ctx, at)?;
        let words = head[0] & 0x0f;
        if head[0] >> 4 != 4 || words < 5 {
            return Err(Counter::Malformed);
        }
        self.protocol = head[9];
        self.l4 = at as u32 + u32::from(words) * 4;
        load_into(ctx, at + 12, &mut self.src, 12)?;
        load_into(ctx, at + 16, &mut self.dst, 12)?;
        Ok([head[6], head[7]])
    }

    /// The same of an IPv6 header; its hop limit. `protocol` is the next header, whatever that is.
    #[inline(always)]
    fn read_v6_header(&mut self, ctx: &TcContext, at: usize) -> Result<u8, Counter> {
        let head: [u8; 8] = load(ctx, at)?;
        if head[0] >> 4 != 6 {
            return Err(Counter::Malformed);
        }
        self.v6 = true;
        self.protocol = head[6];
        self.l4 = at as u32 + 40;
        load_into(ctx, at + 8, &mut self.src, 0)?;
        load_into(ctx, at + 24, &mut self.dst, 0)?;
        if is_mapped(&self.src) || is_mapped(&self.dst) {
            return Err(Counter::BadAddress);
        }
        Ok(head[7])
    }

    #[inline(always)]
    fn read_v4(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let fragment = self.read_v4_header(ctx, ETH_HEADER)?;
        if fragment[0] & 0x3f != 0 || fragment[1] != 0 {
            return Err(Counter::Fragment);
        }
        if bad_v4(self.src[12]) || bad_v4(self.dst[12]) {
            return Err(Counter::BadAddress);
        }
        self.read_l4(ctx, 0)
    }

    #[inline(always)]
    fn read_v6(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let hop_limit = self.read_v6_header(ctx, ETH_HEADER)?;
        let options = self.protocol == HOP_BY_HOP;
        if options {
            // Only for the router alert that MLD wears.
            let head: [u8; 2] = load(ctx, self.l4 as usize)?;
            if head != [ICMPV6, 0] {
                return Err(Counter::Extension);
            }
            self.protocol = ICMPV6;
            self.l4 += 8;
        }
        if is_extension(self.protocol) {
            return Err(if self.protocol == FRAGMENT { Counter::Fragment } else { Counter::Extension });
        }
        if is_low(&self.dst) {
            return Err(Counter::BadAddress);
        }
        self.read_l4(ctx, hop_limit)?;
        let transport = self.form == Form::Flow || self.form == Form::Error;
        if options && transport {
            return Err(Counter::Extension);
        }
        // `::` may ask who has an address, and nothing else.
        if is_low(&self.src) && (transport || self.src[15] != 0) {
            return Err(Counter::BadAddress);
        }
        Ok(())
    }

    #[inline(always)]
    fn read_l4(&mut self, ctx: &TcContext, hop_limit: u8) -> Result<(), Counter> {
        match self.protocol {
            TCP => {
                let tcp: [u8; 14] = load(ctx, self.l4 as usize)?;
                self.sport = [tcp[0], tcp[1]];
                self.dport = [tcp[2], tcp[3]];
                self.flags = tcp[13];
                Ok(())
            }
            UDP => {
                let ports: [u8; 8] = load(ctx, self.l4 as usize)?;
                self.sport = [ports[0], ports[1]];
                self.dport = [ports[2], ports[3]];
                Ok(())
            }
            SCTP => {
                // The common header and the first chunk's type.
                let ports: [u8; 13] = load(ctx, self.l4 as usize)?;
                self.sport = [ports[0], ports[1]];
                self.dport = [ports[2], ports[3]];
                self.flags = ports[12];
                Ok(())
            }
            ICMP if !self.v6 => self.read_icmp(ctx, hop_limit),
            ICMPV6 if self.v6 => self.read_icmp(ctx, hop_limit),
            // The other family's ICMP means nothing, and must not be taken for it.
            ICMP | ICMPV6 => Err(Counter::Malformed),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn read_icmp(&mut self, ctx: &TcContext, hop_limit: u8) -> Result<(), Counter> {
        let icmp: [u8; 8] = load(ctx, self.l4 as usize)?;
        self.name_icmp(&icmp);
        match (self.v6, icmp[0]) {
            (false, 3 | 11 | 12) | (true, 1..=4) => self.form = Form::Error,
            // A listener's report is for groups of its link: to anybody else it would be a way to carry data.
            (true, 130..=132 | 143) if hop_limit != 1 || self.dst[0] != 0xff => {
                return Err(Counter::Malformed);
            }
            (true, 130..=132 | 143) => self.form = Form::Neighbour,
            (true, 133..=137) if hop_limit != 255 => return Err(Counter::Malformed),
            (true, 133 | 135) => self.form = Form::Neighbour,
            (true, 136) => {
                self.form = Form::Advertisement;
                load_into(ctx, self.l4 as usize + 8, &mut self.target, 0)?;
            }
            (true, 134 | 137) => self.form = Form::Router,
            _ => {}
        }
        Ok(())
    }

    /// What names the flow of an ICMP packet: its type and, of requests and their replies, the identifier, which
    /// stands where the opener's port would. Whether it is one of those.
    ///
    /// What is no reply answers nothing: the flow that its like opened the other way is not its own.
    #[inline(always)]
    fn name_icmp(&mut self, icmp: &[u8; 8]) -> bool {
        let identifier = [icmp[4], icmp[5]];
        self.icmp = icmp_number(self.v6, icmp[0]);
        self.answers = ICMP_NONE;
        let request = match (self.v6, icmp[0]) {
            // Echo (RFC 792), timestamp, information, address mask (RFC 950), extended echo (RFC 8335).
            (false, 8 | 13 | 15 | 17 | 42) | (true, 128 | 160) => {
                self.sport = identifier;
                return true;
            }
            (false, 0) => 8,
            (false, 14) => 13,
            (false, 16) => 15,
            (false, 18) => 17,
            (false, 43) => 42,
            (true, 129) => 128,
            (true, 161) => 160,
            _ => return false,
        };
        self.answers = icmp_number(self.v6, request);
        self.dport = identifier;
        true
    }

    /// The packet that an ICMP error is about, as its sender sent it.
    #[inline(always)]
    pub(crate) fn about(&self, ctx: &TcContext) -> Result<&'static Self, Counter> {
        let inner = Self::scratch(INNER)?;
        let at = self.l4 as usize + 8;
        if self.v6 {
            inner.read_v6_header(ctx, at)?;
        } else if inner.read_v4_header(ctx, at)?[0] & 0x1f != 0 {
            return Err(Counter::Fragment);
        }
        let head: [u8; 8] = load(ctx, inner.l4 as usize)?;
        match (inner.v6, inner.protocol) {
            (_, TCP | UDP | SCTP) => {
                inner.sport = [head[0], head[1]];
                inner.dport = [head[2], head[3]];
            }
            (false, ICMP) | (true, ICMPV6) if inner.name_icmp(&head) => {}
            _ => return Err(Counter::Malformed),
        }
        Ok(inner)
    }
}

/// Whether an address is `fe80::/10`.
#[inline(always)]
pub(crate) fn is_link_local(address: &Address) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// Whether an address is `::`, which a pod that looks for duplicates sends from, or `0.0.0.0`.
#[inline(always)]
pub(crate) fn is_unspecified(address: &Address) -> bool {
    (is_low(address) && address[15] == 0)
        || (is_mapped(address) && address[12] | address[13] | address[14] | address[15] == 0)
}

#[inline(always)]
const fn bad_v4(first: u8) -> bool {
    first == 0 || first == 127
}

#[inline(always)]
fn is_mapped(address: &Address) -> bool {
    zero(address, 10) && address[10] == 0xff && address[11] == 0xff
}

/// Whether an address is `::` or `::1`.
#[inline(always)]
fn is_low(address: &Address) -> bool {
    zero(address, 15) && address[15] < 2
}

#[inline(always)]
fn zero(address: &Address, bytes: usize) -> bool {
    let mut all = 0;
    let mut i = 0;
    while i < bytes {
        all |= address[i];
        i += 1;
    }
    all == 0
}

/// The extension headers, and "no next header".
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 50 | 51 | 59 | 60 | 135 | 139 | 140)
}

#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize) -> Result<T, Counter> {
    ctx.load(offset).map_err(|_| Counter::Malformed)
}

/// Reads what is left of an address after its first bytes.
#[inline(always)]
fn load_into(ctx: &TcContext, offset: usize, address: &mut Address, first: usize) -> Result<(), Counter> {
    // SAFETY: the bytes from `first` to the end of the address, which is 16 long.
    let result = unsafe {
        let to = address.as_mut_ptr().add(first);
        bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, to.cast(), (16 - first) as u32)
    };
    if result == 0 { Ok(()) } else { Err(Counter::Malformed) }
}
