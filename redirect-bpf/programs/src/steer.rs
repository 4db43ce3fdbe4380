//! The way of a packet through the flow table and the rows; the same at both ends of an endpoint.
//!
//! Hook A asks it with `Egress` (what the pod opens) and hook B with `Ingress`. A packet is looked up as its
//! originator would have sent it, as the answer to one of the proxy's own connections, and as the answer to
//! one that the other end opened; only then is it judged.

use crate::flow::{self, backward, forward, recall, touch};
use crate::maps::{Generation, count, limits, quota, take};
use crate::packet::{Packet, TCP};
use crate::proxy::TCP_ESTABLISHED;
use crate::row::{Judged, Judgement, Question, proxy_answers, proxy_has, proxy_listens, proxy_state};
use crate::{Fate, event};
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Counter, FlowEntry, FlowKey, FlowKind, FlowState, RowKey, flow_flag, life};

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
    /// What was found of this packet stands for all of its tuple until the next epoch, so that those that follow may
    /// go the short way (`fast.rs`).
    pub(crate) is_lasting: bool,
    /// The device that the packet came in by.
    pub(crate) via: u32,
}

/// Which hook of an endpoint.
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    /// What it sends.
    A,
    /// What it is sent.
    B,
}

impl Hook {
    /// Where the packets of a flow pass; `outward` those that travel as its originator's do.
    #[inline(always)]
    fn of(key: &FlowKey, outward: bool) -> Self {
        if (key.kind == FlowKind::Egress as u8) == outward { Self::A } else { Self::B }
    }
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
                return self.known(packet, &key, entry, true);
            }
            key = backward(self.ifindex, FlowKind::Upstream, packet);
            if let Some(entry) = recall(&key) {
                touch(&key, entry, packet, false);
                return Fate::ToProxy(Counter::UpstreamReply);
            }
            key.kind = answers as u8;
            if let Some(entry) = recall(&key) {
                return self.known(packet, &key, entry, false);
            }
            key = forward(self.ifindex, kind, packet);
        } else if recall(&backward(self.ifindex, FlowKind::Upstream, packet)).is_some()
            && proxy_has(ctx, packet)
        {
            // The other end of a connection that the proxy has opens none on the same ports. An entry for it
            // would take the answers away from the proxy.
            return Fate::Drop(Counter::NotFromProxy);
        }
        let judged = self.question(&key).judge(self.generation);
        if packet.is_connected() && !open {
            return self.midstream(ctx, packet, &key, judged, answers);
        }
        let reason = match judged.verdict {
            Judgement::Direct(reason) => reason,
            Judgement::Proxy => match self.proxied(packet, &key, judged.rule) {
                Ok(()) => return Fate::ToProxy(Counter::ToProxy),
                Err(full) => return self.unremembered(packet, &key, answers, full),
            },
            // What is only watched is never broken off: what cannot be remembered goes past the proxy.
            Judgement::Watch
                if proxy_listens(ctx, packet) && self.proxied(packet, &key, judged.rule).is_ok() =>
            {
                return Fate::ToProxy(Counter::ToProxy);
            }
            Judgement::Watch => Counter::FailOpen,
            Judgement::Refuse(reason) => return self.refuse(packet, reason, judged.reject),
        };
        self.fresh(ctx, packet, &key, answers, (reason, judged.rule))
    }

    /// A packet in the middle of a connection of TCP or SCTP that is not remembered: it was opened before the hooks
    /// were, or was evicted, or let go. Nobody knows who opened it, so it is judged both ways. A peer that may open a
    /// connection to this port of the endpoint may be answered from it, so this gives nobody a new way.
    #[inline(always)]
    fn midstream(
        self,
        ctx: &TcContext,
        packet: &Packet,
        key: &FlowKey,
        forwards: Judged,
        answers: FlowKind,
    ) -> Fate {
        // Its entry was evicted, or never made, and the proxy has it all the same.
        let state = if packet.protocol == TCP { proxy_state(ctx, packet) } else { 0 };
        if state != 0 {
            if state == TCP_ESTABLISHED {
                self.proven(packet, key, forwards);
            }
            return Fate::ToProxy(Counter::ProxiedPacket);
        }
        match forwards.verdict {
            Judgement::Direct(_) if self.is_the_proxys(packet, key) => {
                return Fate::Drop(Counter::NotFromProxy);
            }
            Judgement::Direct(reason) => return self.found(packet, key, true, (reason, forwards.rule)),
            // Not remembered: if the proxy has no socket for it, it is no flow of the proxy's.
            Judgement::Proxy => return Fate::ToProxy(Counter::ProxiedPacket),
            // What is only watched is never broken off.
            Judgement::Watch => return self.found(packet, key, true, (Counter::FailOpen, forwards.rule)),
            Judgement::Refuse(_) => {}
        }
        let key = backward(self.ifindex, answers, packet);
        let backwards = self.question(&key).judge(self.generation);
        match (backwards.verdict, forwards.verdict) {
            (Judgement::Direct(reason), _) => {
                event::backward();
                self.found(packet, &key, false, (reason, backwards.rule))
            }
            (Judgement::Proxy | Judgement::Watch, _) => Fate::ToProxy(Counter::UpstreamReply),
            (_, Judgement::Refuse(reason)) => {
                event::decided(forwards.rule);
                self.refuse(packet, reason, forwards.reject)
            }
            _ => self.refuse(packet, Counter::Denied, backwards.reject),
        }
    }

    /// Whether what a pod says in the middle of a connection is for the proxy to say: what the other end says to this
    /// port goes there. An entry for it would take the other end's packets away from the proxy, which may have answered a
    /// SYN and remember nothing of it (a SYN cookie).
    #[inline(always)]
    fn is_the_proxys(self, packet: &Packet, key: &FlowKey) -> bool {
        key.kind == FlowKind::Egress as u8
            && packet.protocol == TCP
            && self
                .question(&backward(self.ifindex, FlowKind::Ingress, packet))
                .judge(self.generation)
                .verdict
                == Judgement::Proxy
    }

    /// Remembers a connection that somebody has with the proxy, and of whose SYN there was no room to remember anything:
    /// now its client has answered, which nobody does with a forged address. There is always room: the proxy has limits of
    /// its own for connections.
    #[inline(always)]
    fn proven(self, packet: &Packet, key: &FlowKey, judged: Judged) {
        let asked = matches!(judged.verdict, Judgement::Proxy | Judgement::Watch);
        if key.kind != FlowKind::Ingress as u8 || !asked || packet.says(true) != 0 {
            return;
        }
        let life = life::ANSWERED | life::CONFIRMED;
        let entry = self.entry(packet, Hook::B, (FlowState::Proxied, self.flags, life), judged.rule);
        if flow::remember(key, &entry).is_err() {
            flow::remember_free(key, &entry);
        }
    }

    /// Passes a packet that the rows let pass in the middle of a connection. Remembered is only what carries
    /// something: the last words of a connection that was let go must not bring it back. And it opens nothing, so
    /// that it passes where there is no room to remember it, too.
    #[inline(always)]
    fn found(self, packet: &Packet, key: &FlowKey, outward: bool, (reason, rule): (Counter, u32)) -> Fate {
        if packet.is_carrying() {
            let entry =
                self.entry(packet, Hook::of(key, outward), (FlowState::Direct, 0, life::MIDSTREAM), rule);
            if let Err(full) = flow::remember(key, &entry) {
                count(full);
                return Fate::Pass(Counter::Unremembered);
            }
        }
        Fate::Pass(reason)
    }

    /// A packet of a flow that is remembered; `outward` if it travels as its originator's packets do.
    #[inline(always)]
    fn known(self, packet: &Packet, key: &FlowKey, entry: &mut FlowEntry, outward: bool) -> Fate {
        if entry.state == FlowState::Proxied as u8 {
            // The far end of a proxied flow is the proxy; whoever else answers was never asked.
            if !outward {
                return Fate::Drop(Counter::NotFromProxy);
            }
            self.shorten(packet, entry, Hook::of(key, outward));
            touch(key, entry, packet, true);
            return Fate::ToProxy(Counter::ProxiedPacket);
        }
        // Without connections nothing begins a new life: what may pass again passes again.
        let cut = entry.state == FlowState::Cut as u8;
        if (cut && (packet.is_connected() || !self.again(key, entry))) || (!cut && !self.holds(key, entry)) {
            return self.cut(packet, entry, outward);
        }
        self.shorten(packet, entry, Hook::of(key, outward));
        touch(key, entry, packet, outward);
        Fate::Pass(Counter::Known)
    }

    /// Lets the next packet of the flow go the short way at this hook, if it comes as this one did. Written only where it
    /// says something new, and the word itself last: who reads it finds the rest.
    #[inline(always)]
    fn shorten(self, packet: &Packet, entry: &mut FlowEntry, hook: Hook) {
        if !self.is_lasting || entry.flags & (flow_flag::HOST | flow_flag::SELF) != 0 {
            return;
        }
        let at = match hook {
            Hook::A => {
                let from = packet.from();
                if entry.mac != from {
                    entry.mac = from;
                }
                &raw mut entry.fast[1]
            }
            Hook::B => {
                if entry.via != self.via {
                    entry.via = self.via;
                }
                &raw mut entry.fast[0]
            }
        };
        let epoch = self.generation.epoch as u32;
        // SAFETY: a word of a living element.
        unsafe {
            if *at != epoch {
                core::ptr::write_volatile(at, epoch);
            }
        }
    }

    /// What is to be remembered of a flow that this packet begins, at the hook where it does.
    #[inline(always)]
    fn entry(
        self,
        packet: &Packet,
        hook: Hook,
        (state, flags, life): (FlowState, u8, u8),
        rule: u32,
    ) -> FlowEntry {
        let mut entry = flow::entry(self.generation.epoch, state, flags, life, rule);
        self.shorten(packet, &mut entry, hook);
        entry
    }

    /// A packet of a flow that is no longer allowed. The entry lives as long as somebody may think the flow does, so
    /// that no side's next packet passes for the first of another flow. Each side of a TCP connection is told at its
    /// next packet.
    #[inline(always)]
    fn cut(self, packet: &Packet, entry: &mut FlowEntry, outward: bool) -> Fate {
        entry.seen = flow::now();
        event::cut(entry, outward);
        let fate =
            self.refuse(packet, Counter::Cut, packet.protocol == TCP || entry.flags & flow_flag::REJECT != 0);
        // Who breaks it off need not be told.
        if packet.is_reset() || matches!(fate, Fate::Answer(_)) {
            entry.life |= if outward { life::TOLD_OUT } else { life::TOLD_IN };
        }
        fate
    }

    /// Drops a packet; its sender is told, if the row asks for it and the endpoint has not had too many answers.
    #[inline(always)]
    fn refuse(self, packet: &Packet, reason: Counter, reject: bool) -> Fate {
        if !reject || !packet.is_answerable() {
            return Fate::Drop(reason);
        }
        // Where there is no room to count, nothing is answered.
        let may = limits().is_none_or(|limits| match quota(self.ifindex) {
            Some(quota) => take(&mut quota.answers, limits.answers, flow::now()),
            None => limits.answers == 0,
        });
        if !may {
            count(Counter::AnswerLimit);
            return Fate::Drop(reason);
        }
        Fate::Answer(reason)
    }

    /// Whether a flow that was cut may pass under the generation in force.
    #[inline(always)]
    fn again(self, key: &FlowKey, entry: &mut FlowEntry) -> bool {
        if entry.epoch == self.generation.epoch {
            return false;
        }
        entry.epoch = self.generation.epoch;
        let judged = self.asked(key, entry).judge(self.generation);
        entry.rule = judged.rule;
        if matches!(judged.verdict, Judgement::Direct(_)) {
            entry.state = FlowState::Direct as u8;
        }
        // What another generation refuses as well is told as its own.
        entry.flags &= !(flow_flag::REJECT | flow_flag::TOLD);
        if judged.reject {
            entry.flags |= flow_flag::REJECT;
        }
        entry.state == FlowState::Direct as u8
    }

    /// Whether a direct flow still holds under the generation in force: one comparison, until there is another.
    #[inline(always)]
    pub(crate) fn holds(self, key: &FlowKey, entry: &mut FlowEntry) -> bool {
        if entry.epoch == self.generation.epoch || entry.flags & flow_flag::SELF != 0 {
            return true;
        }
        let judged = self.asked(key, entry).judge(self.generation);
        match judged.verdict {
            // Under audit alone a flow is never cut.
            Judgement::Direct(_) | Judgement::Watch => {
                entry.rule = judged.rule;
                entry.epoch = self.generation.epoch;
                true
            }
            Judgement::Proxy | Judgement::Refuse(_) => {
                // The state first: another CPU must not see the flow as judged and still direct.
                entry.state = FlowState::Cut as u8;
                if judged.reject {
                    entry.flags |= flow_flag::REJECT;
                }
                entry.rule = judged.rule;
                entry.epoch = self.generation.epoch;
                false
            }
        }
    }

    /// What a flow that is remembered is asked again: whether a socket of the node opened it, nobody else can say.
    #[inline(always)]
    fn asked<'a>(self, key: &'a FlowKey, entry: &FlowEntry) -> Question<'a> {
        Question { host: entry.flags & flow_flag::HOST != 0, ..self.question(key) }
    }

    /// What a socket of the node sends that nobody has asked for. The Admin tier alone may refuse it.
    #[inline(always)]
    pub(crate) fn from_host(self, ctx: &TcContext, packet: &Packet) -> Fate {
        let key = forward(self.ifindex, FlowKind::Ingress, packet);
        if !packet.is_open()
            && let Some(entry) = recall(&key).filter(|entry| entry.flags & flow_flag::HOST != 0)
        {
            return match self.known(packet, &key, entry, true) {
                Fate::Pass(_) => Fate::Pass(Counter::Host),
                fate => fate,
            };
        }
        let judged = Question { host: true, ..self.question(&key) }.judge(self.generation);
        let (reason, passed) = match judged.verdict {
            Judgement::Direct(Counter::Audited) => (Counter::Audited, true),
            Judgement::Direct(_) => (Counter::Host, true),
            Judgement::Watch => (Counter::FailOpen, true),
            // The proxy would take the node for whoever wears its address.
            Judgement::Proxy => (Counter::NoProxy, false),
            Judgement::Refuse(reason) => (reason, false),
        };
        if passed {
            let entry =
                flow::entry(self.generation.epoch, FlowState::Direct, flow_flag::HOST, 0, judged.rule);
            flow::remember_free(&key, &entry);
            return Fate::Pass(reason);
        }
        // An answer to what the pod has opened, and was let open, whose entry has gone.
        if packet.is_connected() && !packet.is_open() {
            let refused = Judged { verdict: Judgement::Refuse(reason), ..judged };
            return self.midstream(ctx, packet, &key, refused, FlowKind::Egress);
        }
        self.refuse(packet, reason, judged.reject)
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
            host: false,
        }
    }

    /// A new direct flow. One that the endpoint opens beyond its limits is refused, so that what it floods with takes
    /// no room and no neighbour's conntrack. What others open to it passes all the same, judged packet by packet:
    /// else few forged packets a second would close it to everybody.
    #[inline(always)]
    fn direct(self, packet: &Packet, key: &FlowKey, (reason, rule): (Counter, u32)) -> Fate {
        let entry = self.entry(packet, Hook::of(key, true), (FlowState::Direct, 0, 0), rule);
        match flow::remember(key, &entry) {
            Ok(()) => Fate::Pass(reason),
            Err(full) if key.kind == FlowKind::Ingress as u8 => {
                count(full);
                Fate::Pass(Counter::Unremembered)
            }
            Err(full) => Fate::Drop(full),
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
        why: (Counter, u32),
    ) -> Fate {
        if packet.protocol == TCP {
            let dialled = flow::forget(&forward(self.ifindex, FlowKind::Upstream, packet));
            let old = backward(self.ifindex, answers, packet);
            // A direct or a cut one stays: its own direction's rule must go on to speak for it.
            let proxied = recall(&old).is_some_and(|entry| entry.state == FlowState::Proxied as u8);
            // And what the proxy still holds stays with the proxy: of what was opened to the endpoint perhaps without an
            // entry.
            let held = proxied || (key.kind == FlowKind::Egress as u8 && !dialled);
            if held && proxy_answers(ctx, packet) {
                return Fate::Drop(Counter::NotFromProxy);
            }
            if proxied {
                flow::forget(&old);
            }
        }
        self.direct(packet, key, why)
    }

    /// Remembers a new flow of the proxy's; the reason where there is no room.
    #[inline(always)]
    fn proxied(self, packet: &Packet, key: &FlowKey, rule: u32) -> Result<(), Counter> {
        let entry = self.entry(packet, Hook::of(key, true), (FlowState::Proxied, self.flags, 0), rule);
        flow::remember(key, &entry)
    }

    /// A new flow of the proxy's beyond the limits. What the endpoint opens is refused. What others open to it goes to
    /// the proxy all the same, else few forged SYNs a second would close it to everybody: the listener's answer needs no
    /// entry at hook D, and the proxy's socket says whose the packets after it are, and when to remember them
    /// ([`Self::proven`]). But not on the ports of what the endpoint has open itself: that entry would have them.
    #[inline(always)]
    fn unremembered(self, packet: &Packet, key: &FlowKey, answers: FlowKind, full: Counter) -> Fate {
        let inbound = key.kind == FlowKind::Ingress as u8;
        if !inbound || recall(&backward(self.ifindex, answers, packet)).is_some() {
            return Fate::Drop(full);
        }
        count(full);
        Fate::ToProxy(Counter::ToProxy)
    }
}
