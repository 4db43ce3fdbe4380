//! ICMP: what names a flow of it, which types are neighbours' talk, and what an error is about.

use super::{Form, ICMP, ICMPV6, Packet, SCTP, TCP, UDP, load, load_into, odd, shape};
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Counter, ICMP_NONE, icmp_number};

const ICMP_HEADER: u32 = 8;
/// A neighbour's question or answer: the target's address follows the header.
const TARGET: u32 = 16;
const LINK_SCOPE: u8 = 2;
const MAX_LINK_OPTIONS: u32 = 2;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const NONCE: u8 = 14;
const FRAGMENT: u8 = 44;

/// Whether a type asks for an answer of another type: echo (RFC 792), timestamp, information, address mask (RFC 950),
/// extended echo (RFC 8335).
pub(super) const fn is_request(v6: bool, kind: u8) -> bool {
    matches!((v6, kind), (false, 8 | 13 | 15 | 17 | 42) | (true, 128 | 160))
}

impl Packet {
    #[inline(always)]
    pub(super) fn read_icmp(&mut self, ctx: &TcContext, room: u32) -> Result<(), Counter> {
        self.has(room, ICMP_HEADER)?;
        let icmp: [u8; 8] = load(ctx, self.l4)?;
        self.name_icmp(&icmp);
        let hop_limit = if self.v6 { self.hop_limit() } else { 0 };
        match (self.v6, icmp[0]) {
            (false, 3 | 11 | 12) | (true, 1..=4) => self.form = Form::Error,
            // A listener's report is for groups of its link: to anybody else it would be a way to carry data.
            (true, 130..=132 | 143) if hop_limit != 1 || self.dst[0] != 0xff => {
                return Err(Counter::Malformed);
            }
            (true, 130..=132 | 143) => self.form = Form::Neighbour,
            (true, 133..=137) if hop_limit != 255 => return Err(Counter::Malformed),
            // Nor beyond the link.
            (true, 133..=137) if self.dst[0] == 0xff && self.dst[1] & 0x0f > LINK_SCOPE => {
                return Err(Counter::Malformed);
            }
            (true, 133) => {
                self.form = Form::Neighbour;
                self.read_link_options(ctx, room, ICMP_HEADER)?;
            }
            (true, 135 | 136) => {
                self.has(room, ICMP_HEADER + TARGET)?;
                self.form = if icmp[0] == 135 { Form::Neighbour } else { Form::Advertisement };
                load_into(ctx, self.l4 + ICMP_HEADER, &mut self.target, 0)?;
                self.read_link_options(ctx, room, ICMP_HEADER + TARGET)?;
            }
            (true, 134 | 137) => self.form = Form::Router,
            _ => {}
        }
        self.may_be_so(icmp[0])
    }

    /// The options of neighbours' talk (RFC 4861, section 4.6): the sender's hardware address, and a nonce where it looks
    /// for duplicates (RFC 7527). More than two, or others, are more than it needs.
    #[inline(always)]
    fn read_link_options(&mut self, ctx: &TcContext, room: u32, header: u32) -> Result<(), Counter> {
        let options = room - header;
        self.is_terse = options & 7 == 0 && options <= MAX_LINK_OPTIONS * 8;
        for n in 0..MAX_LINK_OPTIONS {
            if !self.is_terse || n * 8 >= options {
                break;
            }
            let option: [u8; 8] = load(ctx, self.l4 + header + n * 8)?;
            match (option[0], option[1]) {
                (SOURCE_LINK | TARGET_LINK, 1) if !self.claims => {
                    self.hardware = [option[2], option[3], option[4], option[5], option[6], option[7]];
                    self.claims = true;
                }
                (NONCE, 1) => {}
                _ => self.is_terse = false,
            }
        }
        Ok(())
    }

    /// Neighbours' talk and errors come in one piece (RFC 6980); of it, only what is about groups has an option before
    /// it, the router alert (RFC 2710, RFC 3810).
    #[inline(always)]
    fn may_be_so(&self, kind: u8) -> Result<(), Counter> {
        if self.form == Form::Flow || self.shape == 0 {
            return Ok(());
        }
        if self.shape & shape::FRAGMENT != 0 {
            return Err(Counter::Fragment);
        }
        let about_groups = self.v6 && matches!(kind, 130..=132 | 143);
        if about_groups || self.form == Form::Error { Ok(()) } else { Err(Counter::Extension) }
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
        if is_request(self.v6, icmp[0]) {
            self.sport = identifier;
            return true;
        }
        let request = match (self.v6, icmp[0]) {
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

    /// What the error that was read last is about.
    #[inline(always)]
    pub(super) fn read_quoted(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        let error = Self::current()?;
        let at = error.l4 + ICMP_HEADER;
        if error.v6 {
            self.quoted_v6(ctx, at)?;
        } else {
            self.quoted_v4(ctx, at)?;
        }
        let head: [u8; 8] = load(ctx, self.l4)?;
        match (self.v6, self.protocol) {
            (_, TCP | UDP | SCTP) => {
                self.sport = [head[0], head[1]];
                self.dport = [head[2], head[3]];
            }
            (false, ICMP) | (true, ICMPV6) if self.name_icmp(&head) => {}
            _ => return Err(Counter::Malformed),
        }
        Ok(())
    }

    #[inline(always)]
    fn quoted_v4(&mut self, ctx: &TcContext, at: u32) -> Result<(), Counter> {
        let head: [u8; 20] = load(ctx, at)?;
        let words = head[0] & 0x0f;
        if head[0] >> 4 != 4 || words < 5 {
            return Err(Counter::Malformed);
        }
        if head[6] & 0x1f != 0 || head[7] != 0 {
            return Err(Counter::Fragment);
        }
        self.protocol = head[9];
        self.l4 = at + u32::from(words) * 4;
        self.src[12..].copy_from_slice(&head[12..16]);
        self.dst[12..].copy_from_slice(&head[16..20]);
        Ok(())
    }

    #[inline(always)]
    fn quoted_v6(&mut self, ctx: &TcContext, at: u32) -> Result<(), Counter> {
        let head: [u8; 40] = load(ctx, at)?;
        if head[0] >> 4 != 6 {
            return Err(Counter::Malformed);
        }
        self.v6 = true;
        self.protocol = head[6];
        self.l4 = at + 40;
        self.src.copy_from_slice(&head[8..24]);
        self.dst.copy_from_slice(&head[24..40]);
        if super::address::is_mapped(&self.src) || super::address::is_mapped(&self.dst) {
            return Err(Counter::BadAddress);
        }
        // The first fragment of what was too big.
        if self.protocol == FRAGMENT {
            let head: [u8; 8] = load(ctx, self.l4)?;
            if u16::from_be_bytes([head[2], head[3]]) & !7 != 0 {
                return Err(Counter::Fragment);
            }
            self.protocol = head[0];
            self.l4 += 8;
        }
        if odd::is_extension(self.protocol) { Err(Counter::Extension) } else { Ok(()) }
    }
}
