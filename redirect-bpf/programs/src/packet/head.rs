//! The headers of the link and of IP: where the packet ends, and whose it says it is.

use super::address::{bad_v4, copy, is_group, is_low, is_mapped, is_unspecified};
use super::{ETH_HEADER, Form, HEAD, MAX_ARP, Packet, is_gso, odd, shape};
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::Counter;

impl Packet {
    #[inline(always)]
    pub(super) fn read_arp(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        self.read_head::<42>(ctx)?;
        // Ethernet and IPv4, with their lengths; a request or a reply (RFC 826).
        if self.head[14..21] != [0, 1, 8, 0, 6, 4, 0] || !matches!(self.head[21], 1 | 2) {
            return Err(Counter::NotIp);
        }
        self.form = Form::Arp;
        copy(&mut self.src, 12, &self.head, 28);
        self.hardware = [22, 23, 24, 25, 26, 27].map(|at| self.head[at]);
        self.claims = true;
        // Who has no address yet asks (RFC 5227), and has nothing to answer.
        let nobody = is_unspecified(&self.src);
        self.is_terse = ctx.len() <= MAX_ARP && !(nobody && self.head[21] != 1);
        Ok(())
    }

    /// An IPv4 header; what its fragment field has beside "don't fragment".
    #[inline(always)]
    pub(super) fn read_v4_header(&mut self, ctx: &TcContext) -> Result<u16, Counter> {
        self.read_head::<34>(ctx)?;
        let version = self.head[14];
        copy(&mut self.src, 12, &self.head, 26);
        copy(&mut self.dst, 12, &self.head, 30);
        let header = u32::from(version & 0x0f) * 4;
        if version >> 4 != 4 || header < 20 {
            return Err(Counter::Malformed);
        }
        self.protocol = self.head[23];
        self.l4 = ETH_HEADER + header;
        self.ends(ctx, ETH_HEADER, u16::from_be_bytes([self.head[16], self.head[17]]))?;
        if bad_v4(self.src[12]) || bad_v4(self.dst[12]) || is_group(false, &self.src) {
            return Err(Counter::BadAddress);
        }
        if header > 20 {
            self.shape |= shape::EXTENDED;
        }
        let field = u16::from_be_bytes([self.head[20], self.head[21]]) & !odd::DONT_FRAGMENT;
        if field != 0 {
            self.shape |= shape::FRAGMENT;
            self.id = [self.head[18], self.head[19], 0, 0];
        }
        Ok(field)
    }

    /// An IPv6 header. `protocol` is the next header, whatever that is.
    #[inline(always)]
    pub(super) fn read_v6_header(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        self.read_head::<HEAD>(ctx)?;
        if self.head[14] >> 4 != 6 {
            return Err(Counter::Malformed);
        }
        self.v6 = true;
        copy(&mut self.src, 0, &self.head, 22);
        copy(&mut self.dst, 0, &self.head, 38);
        if is_mapped(&self.src) || is_mapped(&self.dst) || is_low(&self.dst) || is_group(true, &self.src) {
            return Err(Counter::BadAddress);
        }
        self.protocol = self.head[20];
        self.l4 = ETH_HEADER + 40;
        self.ends(ctx, self.l4, u16::from_be_bytes([self.head[18], self.head[19]]))
    }

    /// The first bytes of the frame. Into the scratch map: the stack has no room for them.
    #[inline(always)]
    fn read_head<const BYTES: usize>(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        const { assert!(BYTES <= HEAD) };
        let to = self.head.as_mut_ptr();
        // SAFETY: as many bytes as asked for, of which there are no more than the head has.
        let result = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, to.cast(), BYTES as u32) };
        if result == 0 { Ok(()) } else { Err(Counter::Malformed) }
    }

    /// Of IPv6.
    #[inline(always)]
    pub(super) fn hop_limit(&self) -> u8 {
        self.head[21]
    }

    /// Where the IP packet ends: `length` bytes after `from`, and within the frame.
    #[inline(always)]
    fn ends(&mut self, ctx: &TcContext, from: u32, length: u16) -> Result<(), Counter> {
        let frame = ctx.len();
        self.end = from + u32::from(length);
        // The kernel's own packets of more than 64 kB (BIG TCP) say 0: they become real ones on the way out.
        if length == 0 && is_gso(ctx) {
            self.end = frame;
        }
        if self.end > frame || self.l4 > self.end || (self.v6 && self.l4 == self.end) {
            return Err(Counter::Malformed);
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn read_v4(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let field = self.read_v4_header(ctx)?;
        if self.shape & shape::EXTENDED != 0 {
            self.read_options(ctx)?;
        }
        if self.protocol == odd::AUTHENTICATION {
            return Err(Counter::Extension);
        }
        if field != 0 {
            self.read_part_v4(field)?;
        }
        self.read_l4(ctx)
    }

    #[inline(always)]
    pub(super) fn read_v6(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        self.read_v6_header(ctx)?;
        if odd::is_extension(self.protocol) {
            self.read_extensions(ctx)?;
        }
        self.read_l4(ctx)?;
        // `::` may ask who has an address, and nothing else.
        let transport = matches!(self.form, Form::Flow | Form::Error | Form::Later);
        if is_low(&self.src) && (transport || self.src[15] != 0) {
            return Err(Counter::BadAddress);
        }
        Ok(())
    }
}
