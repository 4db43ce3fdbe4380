//! The transport header, all of which must be there, and mean what some stack would say.

use super::{
    Form, ICMP, ICMPV6, Packet, SCTP, SCTP_HEADER, TCP, TCP_HEADER, TCP_KINDS, TCP_SENT, UDP, UDP_HEADER,
    load, shape,
};
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::Counter;

impl Packet {
    /// The transport header, all of which must be there.
    #[inline(always)]
    pub(super) fn read_l4(&mut self, ctx: &TcContext) -> Result<(), Counter> {
        if self.form == Form::Later {
            return Ok(());
        }
        // Both bounded by the frame, and the one not behind the other.
        let room = self.end - self.l4;
        self.judged = self.l4;
        match self.protocol {
            TCP => {
                self.has(room, TCP_HEADER)?;
                let tcp: [u8; 14] = load(ctx, self.l4)?;
                let header = u32::from(tcp[12] >> 4) * 4;
                if header < TCP_HEADER {
                    return Err(Counter::Malformed);
                }
                self.has(room, header)?;
                self.sport = [tcp[0], tcp[1]];
                self.dport = [tcp[2], tcp[3]];
                self.flags = tcp[13];
                // To a group there are no connections (RFC 9293, section 3.9.2.3).
                if TCP_SENT >> (self.flags & TCP_KINDS) & 1 == 0 || self.is_group() {
                    return Err(Counter::Malformed);
                }
                self.not_land()
            }
            UDP => {
                self.has(room, UDP_HEADER)?;
                let udp: [u8; 8] = load(ctx, self.l4)?;
                let length = u32::from(u16::from_be_bytes([udp[4], udp[5]]));
                // A fragment has not all of it. (Of IPv6 the kernel takes 0 for a jumbogram.)
                if length < UDP_HEADER || (length > room && self.shape & shape::PARTS == 0) {
                    return Err(Counter::Malformed);
                }
                self.sport = [udp[0], udp[1]];
                self.dport = [udp[2], udp[3]];
                self.not_land()
            }
            SCTP => {
                self.has(room, SCTP_HEADER)?;
                // The common header and the first chunk's type.
                let ports: [u8; 13] = load(ctx, self.l4)?;
                self.flags = ports[12];
                self.sport = [ports[0], ports[1]];
                self.dport = [ports[2], ports[3]];
                self.not_land()
            }
            ICMP if !self.v6 => self.read_icmp(ctx, room),
            ICMPV6 if self.v6 => self.read_icmp(ctx, room),
            // The other family's ICMP means nothing, and must not be taken for it.
            ICMP | ICMPV6 => Err(Counter::Malformed),
            _ => Ok(()),
        }
    }

    /// Whether this much of the transport header is there, which is then what was judged.
    #[inline(always)]
    pub(super) fn has(&mut self, room: u32, header: u32) -> Result<(), Counter> {
        if room < header {
            // A fragment that hides the rest of the header in the next one (RFC 1858).
            let tiny = self.shape & shape::PARTS != 0;
            return Err(if tiny { Counter::FragmentOverlap } else { Counter::Malformed });
        }
        self.judged = self.l4 + header;
        Ok(())
    }

    /// What goes to the very socket that it says it comes from comes from nowhere.
    #[inline(always)]
    fn not_land(&self) -> Result<(), Counter> {
        if self.sport == self.dport && self.src == self.dst { Err(Counter::Malformed) } else { Ok(()) }
    }
}
