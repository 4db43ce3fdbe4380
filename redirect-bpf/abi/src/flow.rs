//! Flows: what the kernel remembers of a connection once it is judged.

use crate::{Address, RowKey};

/// Which table of an endpoint a flow is in.
///
/// One 5-tuple passes hooks A and B of two endpoints of one node, and a client's connection and the proxy's
/// upstream for it may wear the same 5-tuple; so both the endpoint and this are part of the key.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowKind {
    /// Somebody opened it to the endpoint.
    Ingress = 0,
    /// The endpoint opened it.
    Egress = 1,
    /// The proxy opened it, in the endpoint's name or to the endpoint.
    Upstream = 2,
}

/// The key of a flow, in its originator's orientation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The node's end of the endpoint's veth.
    pub ifindex: u32,
    /// A [`FlowKind`].
    pub kind: u8,
    /// The IP protocol.
    pub protocol: u8,
    /// What the rows of ICMP key on instead of a port: the number of the flow's opening packet, as
    /// [`icmp_number`](crate::icmp_number) gives it. 0 of any other protocol.
    pub icmp: [u8; 2],
    /// Who opened it.
    pub src: Address,
    /// To whom.
    pub dst: Address,
    /// The opener's port, network order; the identifier of an ICMP request.
    pub sport: [u8; 2],
    /// The other port, network order.
    pub dport: [u8; 2],
}

/// What was decided for a flow. Fixed for its life: only a new SYN begins another.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// Passes in the kernel.
    Direct = 1,
    /// The client's side of what the proxy holds.
    Proxied = 2,
    /// The proxy's own connection.
    Upstream = 3,
    /// Was direct, is no longer allowed. Kept, so that the other side's next packet does not pass for the
    /// first of a new flow.
    Cut = 4,
}

/// Bits of [`FlowEntry::flags`].
pub mod flow_flag {
    /// A socket of the node itself opened it; no row speaks of it.
    pub const HOST: u8 = 1;
    /// A pod talking to itself; never judged.
    pub const SELF: u8 = 2;
    /// Of a proxied flow: only crossed a bridge, so that the node's conntrack knows nothing of it.
    pub const UNSEEN: u8 = 4;
    /// Of a flow that was cut: an event has told of it.
    pub const TOLD: u8 = 8;
    /// Of a flow that was cut: the row that refuses it asks for an answer.
    pub const REJECT: u8 = 16;
}

/// A flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// The epoch it was last judged under.
    pub epoch: u64,
    /// When a packet was last seen, to [`idle::GRAIN`]: nanoseconds of the kernel's monotonic clock.
    pub seen: u64,
    /// A [`FlowState`].
    pub state: u8,
    /// [`flow_flag`].
    pub flags: u8,
    /// How far it has come: bits of [`life`]. It says how long the flow may be silent: [`FlowEntry::idle`].
    pub life: u8,
    /// Explicit padding.
    pub pad: u8,
    /// [`RowValue::rule`](crate::RowValue::rule) of the row that decided.
    pub rule: u32,
    /// The short way: the epoch (its lower half) under which a hook has looked at everything that it looks at, and found
    /// that it stands until the next epoch. By the hook's [`FlowKind`]: 0 is hook B, 1 hook A. 0: it has not.
    pub fast: [u32; 2],
    /// What hook B then saw of it: the device that the packet came in by. The short way is for what comes by the same.
    pub via: u32,
    /// What hook A then saw of it: the frame's sender. The short way is for the same.
    pub mac: [u8; 6],
    /// Explicit padding.
    pub pad_end: [u8; 6],
}

/// How far a flow has come: what its packets have said. It decides how long it may be silent.
pub mod life {
    /// The other side has answered.
    pub const ANSWERED: u8 = 1;
    /// Its opener has closed its direction (TCP FIN, SCTP SHUTDOWN).
    pub const CLOSED_OUT: u8 = 2;
    /// The other side has closed its direction.
    pub const CLOSED_IN: u8 = 4;
    /// Both have.
    pub const CLOSED: u8 = CLOSED_OUT | CLOSED_IN;
    /// It was broken off (TCP RST, SCTP ABORT).
    pub const RESET: u8 = 8;
    /// It was found in the middle: nobody saw it open.
    pub const MIDSTREAM: u8 = 16;
    /// Its opener has spoken again after the answer: the handshake is whole, the datagrams are a stream.
    pub const CONFIRMED: u8 = 32;
    /// Of a flow that was cut: its opener has been told.
    pub const TOLD_OUT: u8 = 64;
    /// Of a flow that was cut: the other side has been told.
    pub const TOLD_IN: u8 = 128;
    /// Both have.
    pub const TOLD: u8 = TOLD_OUT | TOLD_IN;
}

/// How long a flow may be silent, by its protocol and its life, in nanoseconds. The numbers are the defaults of Linux's
/// conntrack (`Documentation/networking/nf_conntrack-sysctl.rst` and `net/netfilter/nf_conntrack_proto_*.c`, 6.18)
/// where nothing else is said, so that the node's own table and this one forget together.
pub mod idle {
    const SECOND: u64 = 1_000_000_000;
    /// TCP whose handshake is not whole (`tcp_timeout_syn_recv`). A SYN that is sent again begins anew.
    pub const TCP_OPENING: u64 = 60 * SECOND;
    /// The same where the proxy answers, which does so at once. Its sender may be forged; and where it is not, and what
    /// comes next is late, the proxy's socket says whose it is.
    pub const TCP_PROXIED_OPENING: u64 = RESET;
    /// TCP that is open (`tcp_timeout_established`).
    pub const TCP_OPEN: u64 = 5 * 24 * 3600 * SECOND;
    /// TCP found in the middle, of which one side was heard alone (`tcp_timeout_unacknowledged`).
    pub const TCP_MIDSTREAM: u64 = 300 * SECOND;
    /// TCP that one side has closed, or both (`tcp_timeout_fin_wait`, `tcp_timeout_time_wait`).
    pub const TCP_CLOSING: u64 = 120 * SECOND;
    /// What was broken off (`tcp_timeout_close`; `sctp_timeout_closed` is the same).
    pub const RESET: u64 = 10 * SECOND;
    /// TCP that was cut, once both sides were told: longer than any side waits before it sends again what nobody
    /// acknowledged (`TCP_RTO_MAX`, 120 s), so that one whose reset was lost is told again. Before that a side may
    /// think the connection open for as long as one may be silent ([`TCP_OPEN`]).
    pub const TCP_CUT: u64 = 300 * SECOND;
    /// UDP that nobody has answered, or once (`udp_timeout`).
    pub const UDP: u64 = 30 * SECOND;
    /// UDP with words and answers (`udp_timeout_stream`).
    pub const UDP_STREAM: u64 = 120 * SECOND;
    /// ICMP (`icmp_timeout`, `icmpv6_timeout`).
    pub const ICMP: u64 = 30 * SECOND;
    /// SCTP before its handshake is whole. Not conntrack's 3 s, which are RTO.Initial (RFC 9260, section 16): an INIT
    /// that is sent again twice waits longer.
    pub const SCTP_OPENING: u64 = 30 * SECOND;
    /// SCTP that is open (`sctp_timeout_established`): as long as its heartbeats may fail (RFC 9260, section 8.3).
    pub const SCTP_OPEN: u64 = 210 * SECOND;
    /// Every other protocol (`generic_timeout`).
    pub const OTHER: u64 = 600 * SECOND;
    /// No flow is forgotten sooner.
    pub const LEAST: u64 = RESET;
    /// How far behind [`FlowEntry::seen`](super::FlowEntry::seen) may be, so that CPUs need not write to the same line
    /// for each packet: a tenth of the shortest time that anything is remembered.
    pub const GRAIN: u64 = SECOND;
}

impl FlowEntry {
    /// How long it may be silent; see [`idle`].
    #[must_use]
    pub const fn idle(&self, protocol: u8) -> u64 {
        let cut = self.state == FlowState::Cut as u8;
        let told = self.life & life::TOLD == life::TOLD;
        let confirmed = self.life & life::CONFIRMED != 0;
        match RowKey::protocol_of(protocol) {
            RowKey::TCP if cut && told => idle::TCP_CUT,
            RowKey::TCP if cut => idle::TCP_OPEN,
            RowKey::UDP if cut => idle::UDP_STREAM,
            RowKey::TCP | RowKey::SCTP if self.life & life::RESET != 0 => idle::RESET,
            RowKey::TCP | RowKey::SCTP if self.life & life::CLOSED != 0 => idle::TCP_CLOSING,
            RowKey::TCP if confirmed => idle::TCP_OPEN,
            RowKey::TCP if self.life & life::MIDSTREAM != 0 => idle::TCP_MIDSTREAM,
            RowKey::TCP if self.state == FlowState::Proxied as u8 => idle::TCP_PROXIED_OPENING,
            RowKey::TCP => idle::TCP_OPENING,
            RowKey::SCTP if confirmed || cut => idle::SCTP_OPEN,
            RowKey::SCTP => idle::SCTP_OPENING,
            RowKey::UDP if confirmed => idle::UDP_STREAM,
            RowKey::UDP => idle::UDP,
            RowKey::ICMP => idle::ICMP,
            _ => idle::OTHER,
        }
    }

    /// Whether it has been silent for too long: then it is as if it had never been.
    #[must_use]
    pub const fn is_over(&self, protocol: u8, now: u64) -> bool {
        // Another CPU may have seen a packet since this one asked for the time: saturate, or the flow of the moment
        // would look older than any.
        let silent = now.saturating_sub(self.seen);
        silent > idle::LEAST && silent > self.idle(protocol)
    }
}

const _: () = assert!(size_of::<FlowKey>() == 44 && align_of::<FlowKey>() == 4);
const _: () = assert!(size_of::<FlowEntry>() == 48);
const _: () = assert!(idle::GRAIN * 10 <= idle::LEAST);

#[cfg(test)]
mod tests {
    use super::{FlowEntry, FlowState, idle, life};

    const TCP: u8 = 6;

    #[test]
    fn a_syn_to_the_proxy_is_soon_forgotten() {
        let asked =
            FlowEntry { state: FlowState::Proxied as u8, life: life::ANSWERED, ..FlowEntry::default() };
        assert_eq!(asked.idle(TCP), idle::TCP_PROXIED_OPENING);
        assert!(asked.is_over(TCP, idle::TCP_PROXIED_OPENING + 1));
        let direct = FlowEntry { state: FlowState::Direct as u8, ..asked };
        assert_eq!(direct.idle(TCP), idle::TCP_OPENING);
        for state in [FlowState::Proxied, FlowState::Direct, FlowState::Upstream] {
            let open = life::ANSWERED | life::CONFIRMED;
            let entry = FlowEntry { state: state as u8, life: open, ..FlowEntry::default() };
            assert_eq!(entry.idle(TCP), idle::TCP_OPEN, "{state:?}");
        }
    }
}
