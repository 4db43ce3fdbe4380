//! The verdict on a new flow: one look-up of the peer's class, one of the row.

use crate::event;
use crate::maps::{Generation, config};
use crate::packet::Packet;
use crate::proxy::{self, reversed, tuple};
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{
    Action, Address, Counter, FlowKind, HOST_CLASS, LOCAL_NODE, RowKey, RowValue, row_flag,
};

/// What a row says of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Let it pass; the reason to count.
    Direct(Counter),
    /// The proxy judges it.
    Proxy,
    /// The proxy would only watch it: where it cannot, the flow passes.
    Watch,
    /// Refuse it; the reason to count.
    Refuse(Counter),
}

/// A judgement and what comes with it.
#[derive(Clone, Copy)]
pub(crate) struct Judged {
    pub(crate) verdict: Judgement,
    /// [`RowValue::rule`](sluice_bpf_abi::RowValue::rule); 0 where there is no row.
    pub(crate) rule: u32,
    /// A refusal is answered.
    pub(crate) reject: bool,
}

impl Judged {
    /// As a function that is not inlined returns it: the rule in the upper half.
    #[inline(always)]
    fn code(self) -> u64 {
        let (verdict, reason) = match self.verdict {
            Judgement::Direct(reason) => (DIRECT, reason as u64),
            Judgement::Proxy => (PROXY, 0),
            Judgement::Watch => (WATCH, 0),
            Judgement::Refuse(reason) => (REFUSE, reason as u64),
        };
        u64::from(self.rule) << 32 | u64::from(self.reject) << 24 | verdict << 16 | reason
    }

    /// What [`Judged::code`] made.
    #[inline(always)]
    fn from_code(code: u64) -> Self {
        let reason = crate::reason((code & 0xff) as u32).unwrap_or(Counter::NoRow);
        let verdict = match code >> 16 & 0xff {
            DIRECT => Judgement::Direct(reason),
            PROXY => Judgement::Proxy,
            WATCH => Judgement::Watch,
            _ => Judgement::Refuse(reason),
        };
        Self { verdict, rule: (code >> 32) as u32, reject: code >> 24 & 1 != 0 }
    }
}

const REFUSE: u64 = 0;
const DIRECT: u64 = 1;
const PROXY: u64 = 2;
const WATCH: u64 = 3;

/// Whose flow is judged, in its originator's orientation.
pub(crate) struct Question<'a> {
    pub(crate) profile: u32,
    pub(crate) direction: FlowKind,
    pub(crate) peer: &'a Address,
    /// As rows have it.
    pub(crate) protocol: u8,
    /// The destination port, the ICMP number, or 0.
    pub(crate) number: [u8; 2],
    /// A socket of the node opened it: what no row speaks of passes.
    pub(crate) host: bool,
}

impl Question<'_> {
    /// Asks the rows of a generation.
    #[inline(always)]
    pub(crate) fn judge(&self, generation: Generation) -> Judged {
        let half = |at: usize| {
            let bytes = &self.peer[at..at + 8];
            u64::from_ne_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ])
        };
        let asked = u64::from(self.profile) << 32
            | u64::from(u16::from_ne_bytes(self.number)) << 16
            | u64::from(self.protocol) << 8
            | u64::from(self.host) << 1
            | u64::from(self.direction as u8 == FlowKind::Egress as u8);
        Judged::from_code(judge_flow(half(0), half(8), asked, generation.epoch))
    }
}

/// Asks the rows: about a peer, whose address comes in two halves, what [`Question`] has beside.
// A function of its own: it is asked from many places, and the kernel need look at it only once. It has no pointers, so
// that the kernel takes its arguments for anything.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_flow(peer: u64, rest: u64, asked: u64, epoch: u64) -> u64 {
    // SAFETY: sixteen bytes either way.
    let peer = unsafe { core::mem::transmute::<[u64; 2], Address>([peer, rest]) };
    let row = Row {
        generation: Generation::of(epoch),
        peer: &peer,
        inbound: asked & 1 == 0,
        host: asked & 2 != 0,
        protocol: (asked >> 8) as u8,
        number: ((asked >> 16) as u16).to_ne_bytes(),
    };
    row.judge((asked >> 32) as u32).code()
}

/// What a [`Question`] asks, taken apart and put together again.
struct Row<'a> {
    generation: Generation,
    peer: &'a Address,
    inbound: bool,
    host: bool,
    protocol: u8,
    number: [u8; 2],
}

impl Row<'_> {
    #[inline(always)]
    fn judge(&self, profile: u32) -> Judged {
        let mut class = self.class();
        let direction = if self.inbound { FlowKind::Ingress } else { FlowKind::Egress };
        let mut key =
            RowKey { profile, class, direction: direction as u8, protocol: self.protocol, port: self.number };
        let mut row = self.generation.row(&key);
        if self.host && row.is_none() {
            // Of an address that no object names: a bridge's.
            class = HOST_CLASS;
            key.class = class;
            row = self.generation.row(&key);
            if row.is_none() {
                return Judged { verdict: Judgement::Direct(Counter::Host), rule: 0, reject: false };
            }
        }
        let Some(row) = row else {
            event::judged(class, 0);
            return Judged { verdict: Judgement::Refuse(Counter::NoRow), rule: 0, reject: false };
        };
        event::judged(class, row.rule);
        Judged { verdict: self.verdict(row), rule: row.rule, reject: row.flags & row_flag::REJECT != 0 }
    }

    #[inline(always)]
    fn verdict(&self, row: RowValue) -> Judgement {
        if row.action == Action::Allow as u8 {
            let audited = row.flags & row_flag::AUDIT != 0;
            return Judgement::Direct(if audited { Counter::Audited } else { Counter::Allowed });
        }
        let open = row.flags & row_flag::FAIL_OPEN != 0;
        match row.action == Action::ToProxy as u8 {
            true if self.protocol == RowKey::TCP && open => Judgement::Watch,
            true if self.protocol == RowKey::TCP => Judgement::Proxy,
            // The proxy carries TCP alone.
            true if open => Judgement::Direct(Counter::Audited),
            _ => Judgement::Refuse(Counter::Denied),
        }
    }

    /// What an endpoint sends to a Service is judged by who stands behind it, before a translation chooses one of
    /// them: the port of the Service has a class of its own, whatever its address is otherwise. Nobody sends from a
    /// Service's address.
    ///
    /// Forwarded traffic that wears an address of this node is nobody's: only a socket of the node is the
    /// node, and its packets have rows of their own.
    #[inline(always)]
    fn class(&self) -> u32 {
        if self.host {
            return HOST_CLASS | self.generation.class(self.peer);
        }
        if self.inbound && self.generation.owner(self.peer) == Some(LOCAL_NODE) {
            return 0;
        }
        if !self.inbound
            && RowKey::has_ports(self.protocol)
            && let Some(class) = self.generation.service(self.peer, self.number, self.protocol)
        {
            return class;
        }
        self.generation.class(self.peer)
    }
}

/// Whether somebody listens in the proxy's namespace.
#[inline(always)]
pub(crate) fn proxy_listens(ctx: &TcContext, packet: &Packet) -> bool {
    let config = config();
    config.helper_ifindex != 0 && proxy::with_listener(ctx, packet, &config, config.proxy_nsid as u64, |_| ())
}

/// Whether the proxy has a connection that this is a packet of.
#[inline(always)]
pub(crate) fn proxy_has(ctx: &TcContext, packet: &Packet) -> bool {
    proxy_state(ctx, packet) != 0
}

/// How far that has come: a state of TCP, and 0 where there is none.
#[inline(always)]
pub(crate) fn proxy_state(ctx: &TcContext, packet: &Packet) -> u32 {
    let config = config();
    match config.helper_ifindex {
        0 => 0,
        _ => proxy::state(ctx, tuple(packet), packet.v6, config.proxy_nsid as u64),
    }
}

/// Whether the proxy has a connection whose own packets look like this one: it stands for the sender.
#[inline(always)]
pub(crate) fn proxy_answers(ctx: &TcContext, packet: &Packet) -> bool {
    let config = config();
    config.helper_ifindex != 0
        && proxy::with_connection(ctx, reversed(packet), packet.v6, config.proxy_nsid as u64, |_| ())
}
