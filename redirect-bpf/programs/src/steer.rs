//! The way of a packet through the flow table and the rows; the same at both ends of an endpoint.
//!
//! Hook A asks it with `Egress` (what the pod opens) and hook B with `Ingress`. A packet is looked up as its
//! originator would have sent it, as the answer to one of the proxy's own connections, and as the answer to
//! one that the other end opened; only then is it judged.

use crate::Fate;
use crate::maps::{FLOWS, Generation};
use crate::packet::{Packet, TCP};
use crate::row::{Judgement, Question, proxy_answers, proxy_has, proxy_listens};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Counter, FlowEntry, FlowKey, FlowKind, FlowState, RowKey};

/// How long a flow without connections (UDP, ICMP) may be silent: what conntrack gives a UDP stream.
const DATAGRAM_IDLE: u64 = 120 * SECOND;
/// How long a TCP connection may be silent: conntrack's five days. A later packet is judged anew.
const TCP_IDLE: u64 = 5 * 24 * 3600 * SECOND;
const SECOND: u64 = 1_000_000_000;

/// The endpoint that a hook speaks for.
#[derive(Clone, Copy)]
pub(crate) struct Endpoint {
    pub(crate) ifindex: u32,
    pub(crate) profile: u32,
    pub(crate) generation: Generation,
    /// What is remembered of the flows that go to the proxy: [`flow_flag::UNSEEN`] or nothing.
    ///
    /// [`flow_flag::UNSEEN`]: sluice_bpf_abi::flow_flag::UNSEEN
    pub(crate) flags: u8,
}

/// The key of a packet in the direction it travels.
#[inline(always)]
pub(crate) fn forward(ifindex: u32, kind: FlowKind, packet: &Packet) -> FlowKey {
    FlowKey {
        ifindex,
        kind: kind as u8,
        protocol: packet.protocol,
        icmp: packet.icmp,
        src: packet.src,
        dst: packet.dst,
        sport: packet.sport,
        dport: packet.dport,
    }
}

/// The key of the flow that a packet answers. An ICMP packet that is no reply has one that no flow has.
#[inline(always)]
pub(crate) fn backward(ifindex: u32, kind: FlowKind, packet: &Packet) -> FlowKey {
    FlowKey {
        ifindex,
        kind: kind as u8,
        protocol: packet.protocol,
        icmp: packet.answers,
        src: packet.dst,
        dst: packet.src,
        sport: packet.dport,
        dport: packet.sport,
    }
}

/// Remembers a flow.
#[inline(always)]
pub(crate) fn remember(key: &FlowKey, epoch: u64, state: FlowState, flags: u8) -> bool {
    let entry = FlowEntry { epoch, seen: now(), state: state as u8, flags, life: 0, pad: 0, rule: 0 };
    FLOWS.insert(key, entry, 0).is_ok()
}

/// The living entry of a flow.
#[inline(always)]
pub(crate) fn recall(key: &FlowKey) -> Option<&'static mut FlowEntry> {
    let entry = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the kernel keeps the element until the program returns. Races with other CPUs on its fields
    // are of single words, and what they race about is the same verdict.
    let entry = unsafe { &mut *entry };
    let idle = if key.protocol == TCP { TCP_IDLE } else { DATAGRAM_IDLE };
    // Another CPU may have seen a packet since this one asked for the time: saturate, or the flow of the moment
    // would look older than any.
    if now().saturating_sub(entry.seen) > idle { None } else { Some(entry) }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

impl Endpoint {
    /// What becomes of a packet that this endpoint sends (`Egress`) or is sent (`Ingress`).
    #[inline(always)]
    pub(crate) fn steer(self, ctx: &TcContext, packet: &Packet, kind: FlowKind, answers: FlowKind) -> Fate {
        // A SYN begins a new life, whatever had the ports before.
        let open = packet.is_open();
        let mut key = forward(self.ifindex, kind, packet);
        if !open {
            if let Some(entry) = recall(&key) {
                return self.known(&key, entry, true);
            }
            key = backward(self.ifindex, FlowKind::Upstream, packet);
            if let Some(entry) = recall(&key) {
                entry.seen = now();
                return Fate::ToProxy(Counter::UpstreamReply);
            }
            key.kind = answers as u8;
            if let Some(entry) = recall(&key) {
                return self.known(&key, entry, false);
            }
            key = forward(self.ifindex, kind, packet);
        } else if recall(&backward(self.ifindex, FlowKind::Upstream, packet)).is_some()
            && proxy_has(ctx, packet)
        {
            // The other end of a connection that the proxy has opens none on the same ports. An entry for it
            // would take the answers away from the proxy.
            return Fate::Drop(Counter::NotFromProxy);
        }
        let judgement = self.question(&key).judge(self.generation);
        if packet.protocol == TCP && !open {
            return self.midstream(ctx, packet, &key, judgement, answers);
        }
        match judgement {
            Judgement::Direct(reason) => self.fresh(ctx, packet, &key, answers, reason),
            Judgement::Proxy => self.proxied(&key),
            Judgement::Watch if proxy_listens(ctx, packet) => self.proxied(&key),
            Judgement::Watch => self.fresh(ctx, packet, &key, answers, Counter::FailOpen),
            Judgement::Refuse(reason) => Fate::Drop(reason),
        }
    }

    /// A TCP packet in the middle of a connection that is not remembered: it was opened before the hooks
    /// were, or was evicted. Nobody knows who opened it, so it is judged both ways. A peer that may open a
    /// connection to this port of the endpoint may be answered from it, so this gives nobody a new way.
    #[inline(always)]
    fn midstream(
        self,
        ctx: &TcContext,
        packet: &Packet,
        key: &FlowKey,
        forwards: Judgement,
        answers: FlowKind,
    ) -> Fate {
        // Its entry was evicted, and the proxy has it all the same.
        if proxy_has(ctx, packet) {
            return Fate::ToProxy(Counter::ProxiedPacket);
        }
        match forwards {
            Judgement::Direct(reason) => return self.direct(key, reason),
            // Not remembered: if the proxy has no socket for it, it is no flow of the proxy's.
            Judgement::Proxy => return Fate::ToProxy(Counter::ProxiedPacket),
            // What is only watched is never broken off.
            Judgement::Watch => return self.direct(key, Counter::FailOpen),
            Judgement::Refuse(_) => {}
        }
        let key = backward(self.ifindex, answers, packet);
        match (self.question(&key).judge(self.generation), forwards) {
            (Judgement::Direct(reason), _) => self.direct(&key, reason),
            (Judgement::Proxy | Judgement::Watch, _) => Fate::ToProxy(Counter::UpstreamReply),
            (_, Judgement::Refuse(reason)) => Fate::Drop(reason),
            _ => Fate::Drop(Counter::Denied),
        }
    }

    /// A packet of a flow that is remembered; `outward` if it travels as its originator's packets do.
    #[inline(always)]
    fn known(self, key: &FlowKey, entry: &mut FlowEntry, outward: bool) -> Fate {
        if entry.state == FlowState::Proxied as u8 {
            entry.seen = now();
            // The far end of a proxied flow is the proxy; whoever else answers was never asked.
            return if outward {
                Fate::ToProxy(Counter::ProxiedPacket)
            } else {
                Fate::Drop(Counter::NotFromProxy)
            };
        }
        // Without connections nothing begins a new life: what may pass again passes again.
        let cut = entry.state == FlowState::Cut as u8;
        if cut && (key.protocol == TCP || !self.again(key, entry)) {
            return Fate::Drop(Counter::Cut);
        }
        if !self.holds(key, entry) {
            return Fate::Drop(Counter::Cut);
        }
        entry.seen = now();
        Fate::Pass(Counter::Known)
    }

    /// Whether a flow that was cut may pass under the generation in force.
    #[inline(always)]
    fn again(self, key: &FlowKey, entry: &mut FlowEntry) -> bool {
        if entry.epoch == self.generation.epoch {
            return false;
        }
        entry.epoch = self.generation.epoch;
        if matches!(self.question(key).judge(self.generation), Judgement::Direct(_)) {
            entry.state = FlowState::Direct as u8;
        }
        entry.state == FlowState::Direct as u8
    }

    /// Whether a direct flow still holds under the generation in force.
    #[inline(always)]
    pub(crate) fn holds(self, key: &FlowKey, entry: &mut FlowEntry) -> bool {
        if entry.epoch == self.generation.epoch || entry.flags != 0 {
            return true;
        }
        match self.question(key).judge(self.generation) {
            // Under audit alone a flow is never cut.
            Judgement::Direct(_) | Judgement::Watch => {
                entry.epoch = self.generation.epoch;
                true
            }
            Judgement::Proxy | Judgement::Refuse(_) => {
                entry.epoch = self.generation.epoch;
                entry.state = FlowState::Cut as u8;
                false
            }
        }
    }

    #[inline(always)]
    fn question(self, key: &FlowKey) -> Question<'_> {
        let inbound = key.kind == FlowKind::Ingress as u8;
        let protocol = RowKey::protocol_of(key.protocol);
        Question {
            profile: self.profile,
            direction: if inbound { FlowKind::Ingress } else { FlowKind::Egress },
            peer: if inbound { &key.src } else { &key.dst },
            protocol,
            number: if RowKey::has_ports(protocol) { key.dport } else { key.icmp },
        }
    }

    #[inline(always)]
    fn direct(self, key: &FlowKey, reason: Counter) -> Fate {
        if remember(key, self.generation.epoch, FlowState::Direct, 0) {
            Fate::Pass(reason)
        } else {
            Fate::Drop(Counter::FlowTable)
        }
    }

    /// A direct flow on ports that may have been another's, whose entries would take this one's answers away:
    /// one that the proxy opened in the client's name, or one that the other end was asked for.
    #[inline(always)]
    fn fresh(
        self,
        ctx: &TcContext,
        packet: &Packet,
        key: &FlowKey,
        answers: FlowKind,
        reason: Counter,
    ) -> Fate {
        if packet.protocol == TCP {
            let _ = FLOWS.remove(forward(self.ifindex, FlowKind::Upstream, packet));
            let old = backward(self.ifindex, answers, packet);
            // A direct or a cut one stays: its own direction's rule must go on to speak for it.
            if recall(&old).is_some_and(|entry| entry.state == FlowState::Proxied as u8) {
                // And what the proxy still holds stays with the proxy.
                if proxy_answers(ctx, packet) {
                    return Fate::Drop(Counter::NotFromProxy);
                }
                let _ = FLOWS.remove(old);
            }
        }
        self.direct(key, reason)
    }

    #[inline(always)]
    fn proxied(self, key: &FlowKey) -> Fate {
        if remember(key, self.generation.epoch, FlowState::Proxied, self.flags) {
            Fate::ToProxy(Counter::ToProxy)
        } else {
            Fate::Drop(Counter::FlowTable)
        }
    }
}
