//! What a packet may have beside its headers: IPv4 options, IPv6 extension headers, fragments. All bounded.
//!
//! Most packets have none of them and never come here.

use super::{Form, Packet, TCP, is_gso, load, shape};
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::Counter;

/// The bit of IPv4's fragment field that is of no consequence here.
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Where a packet put together again ends, at most.
const MAX_PACKET: u32 = 0xffff;

/// The authentication header, which hides the transport's ports behind itself.
pub(super) const AUTHENTICATION: u8 = 51;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Hop-by-hop options, destination options, the fragment header, destination options again: the most that a packet
/// without a routing header has (RFC 8200, section 4.1).
const MAX_EXTENSIONS: u8 = 4;
/// Options of one header, and of an IPv4 header: what RFC 8504, section 5.3, has hosts take, and Linux does
/// (`net.ipv6.max_dst_opts_number`).
const MAX_OPTIONS: u8 = 8;

const PAD1: u8 = 0;
const JUMBO_PAYLOAD: u8 = 0xc2;
const HOME_ADDRESS: u8 = 0xc9;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;
const ROUTER_ALERT: u8 = 148;

/// Extension headers (IANA's list, with the experimental ones), and "no next header". Not ESP: what is in there nobody
/// on the way knows, and it has a row of its own.
#[inline(always)]
pub(super) const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254)
}

impl Packet {
    /// IPv4's options. Those that say where a packet goes are refused, and so is what has no business between pods
    /// (RFC 7126); IGMP's router alert passes.
    #[inline(always)]
    pub(super) fn read_options(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let mut at = super::ETH_HEADER + 20;
        for _ in 0..MAX_OPTIONS {
            if at >= self.l4 {
                return Ok(());
            }
            let option: [u8; 2] = load(ctx, at)?;
            at += match option[0] {
                END_OF_OPTIONS => return Ok(()),
                NO_OPERATION => 1,
                ROUTER_ALERT if option[1] == 4 => 4,
                LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Counter::SourceRoute),
                _ => return Err(Counter::Extension),
            };
        }
        if at == self.l4 { Ok(()) } else { Err(Counter::Extension) }
    }

    /// Everything between IPv6's header and the transport's.
    #[inline(always)]
    pub(super) fn read_extensions(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        for passed in 0..MAX_EXTENSIONS {
            match self.protocol {
                // Nowhere but in the first place (RFC 8200, section 4.1).
                HOP_BY_HOP if passed == 0 => self.pass_over(ctx)?,
                DESTINATION => self.pass_over(ctx)?,
                // RFC 5095, and segment routing: it goes on to where nobody asked a rule about.
                ROUTING => return Err(Counter::SourceRoute),
                FRAGMENT if self.shape & shape::FRAGMENT == 0 => {
                    self.read_part_v6(ctx)?;
                    if self.form == Form::Later {
                        return Ok(());
                    }
                }
                next if is_extension(next) => return Err(Counter::Extension),
                _ => return Ok(()),
            }
        }
        if is_extension(self.protocol) { Err(Counter::Extension) } else { Ok(()) }
    }

    /// Passes over an options header, none of whose options may mean that the packet is another than it seems.
    #[inline(always)]
    fn pass_over(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let head: [u8; 8] = load(ctx, self.l4)?;
        let end = self.l4 + (u32::from(head[1]) + 1) * 8;
        if end > self.end {
            return self.cut_short();
        }
        let mut at = self.l4 + 2;
        self.l4 = end;
        self.protocol = head[0];
        // The header that the kernel itself puts before more than 64 kB of TCP (BIG TCP) and takes away again.
        if head[..4] == [TCP, 0, JUMBO_PAYLOAD, 4] && is_gso(ctx) {
            return Ok(());
        }
        self.shape |= shape::EXTENDED;
        for _ in 0..MAX_OPTIONS {
            if at >= end {
                break;
            }
            let option: [u8; 2] = load(ctx, at)?;
            at += match option[0] {
                PAD1 => 1,
                JUMBO_PAYLOAD => return Err(Counter::Malformed),
                // It would be taken for another's (RFC 6275).
                HOME_ADDRESS => return Err(Counter::SourceRoute),
                _ => 2 + u32::from(option[1]),
            };
        }
        if at == end {
            return Ok(());
        }
        Err(if at > end { Counter::Malformed } else { Counter::Extension })
    }

    #[inline(always)]
    pub(super) fn read_part_v4(&mut self, field: u16) -> Result<(), Counter> {
        // The reserved bit, which nobody sends.
        if field & !(MORE_FRAGMENTS | OFFSET) != 0 {
            return Err(Counter::Malformed);
        }
        self.is_part(u32::from(field & OFFSET) * 8, field & MORE_FRAGMENTS != 0)
    }

    #[inline(always)]
    fn read_part_v6(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let head: [u8; 8] = load(ctx, self.l4)?;
        if self.l4 + 8 > self.end {
            return self.cut_short();
        }
        self.protocol = head[0];
        self.l4 += 8;
        self.shape |= shape::FRAGMENT;
        self.id = [head[4], head[5], head[6], head[7]];
        let field = u16::from_be_bytes([head[2], head[3]]);
        // All of a packet in one fragment is a packet, whatever else has its number (RFC 6946).
        if field & !6 == 0 {
            return Ok(());
        }
        self.is_part(u32::from(field & !7), field & 1 != 0)
    }

    /// A fragment whose bytes begin here.
    #[inline(always)]
    fn is_part(&mut self, offset: u32, more: bool) -> Result<(), Counter> {
        let length = self.end - self.l4;
        // All but the last are cut at eight bytes; put together they end where a packet may (RFC 8200, section 4.5).
        if length == 0 || (more && length & 7 != 0) || offset + length > MAX_PACKET {
            return Err(Counter::Malformed);
        }
        self.shape |= shape::PARTS;
        self.base = self.l4;
        self.offset = offset;
        if offset != 0 {
            self.form = Form::Later;
        }
        Ok(())
    }

    /// A header that ends behind the packet; where it is a first fragment, in the next one (RFC 7112).
    #[inline(always)]
    fn cut_short(&self) -> Result<(), Counter> {
        let tiny = self.shape & shape::PARTS != 0;
        Err(if tiny { Counter::FragmentOverlap } else { Counter::Malformed })
    }
}
