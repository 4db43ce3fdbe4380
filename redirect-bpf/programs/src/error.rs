//! ICMP errors: about whose packet they are, and who learns of it.
//!
//! An error that stands to a direct flow passes to its endpoint. One about a packet that the proxy sent wears the
//! address in whose name it was sent, but only the proxy's socket knows the connection: without the error its path's
//! MTU would be a black hole. Knows nothing of rows: an error about nothing that is remembered is judged as any
//! other ICMP packet. Called by hooks A and B.

use crate::Fate;
use crate::flow::{backward, forward, recall};
use crate::packet::{Packet, TCP};
use crate::steer::Endpoint;
use sluice_bpf_abi::{Counter, FlowKind, FlowState};

/// What becomes of an error that the endpoint sends about a packet that it was sent.
#[inline(always)]
pub(crate) fn sent(endpoint: Endpoint, packet: &Packet) -> Option<Fate> {
    let inner = about(packet)?;
    remembered(endpoint, inner, FlowKind::Ingress, FlowKind::Egress)
}

/// What becomes of an error that the endpoint is sent, about a packet that wears its address.
#[inline(always)]
pub(crate) fn received(endpoint: Endpoint, packet: &Packet) -> Option<Fate> {
    let inner = about(packet)?;
    // Any router may have something to say, but a pod of this node only of packets that were for itself.
    let sender = endpoint.generation.endpoint(&packet.src);
    if sender.is_some() && sender != endpoint.generation.endpoint(&inner.dst) {
        return None;
    }
    remembered(endpoint, inner, FlowKind::Egress, FlowKind::Ingress)
}

/// The packet it is about, which its receiver must have sent.
#[inline(always)]
fn about(packet: &Packet) -> Option<&'static Packet> {
    packet.about().ok().filter(|inner| inner.src == packet.dst)
}

/// `opened` is the kind of the flows whose packets travel as the inner one does, away from who opened them;
/// `answered` of those that it is an answer in.
#[inline(always)]
fn remembered(endpoint: Endpoint, inner: &Packet, opened: FlowKind, answered: FlowKind) -> Option<Fate> {
    let key = forward(endpoint.ifindex, opened, inner);
    if let Some(entry) = recall(&key)
        && entry.state == FlowState::Direct as u8
    {
        return endpoint.holds(&key, entry).then_some(Fate::Pass(Counter::Related));
    }
    // The proxy sent it to open a connection, or on one that it opened.
    if inner.protocol == TCP && recall(&forward(endpoint.ifindex, FlowKind::Upstream, inner)).is_some() {
        return Some(Fate::ToProxy(Counter::ErrorToProxy));
    }
    let key = backward(endpoint.ifindex, answered, inner);
    let entry = recall(&key)?;
    // The proxy sent it in the place of the end that was asked.
    if entry.state == FlowState::Proxied as u8 {
        return Some(Fate::ToProxy(Counter::ErrorToProxy));
    }
    let direct = entry.state == FlowState::Direct as u8 && endpoint.holds(&key, entry);
    direct.then_some(Fate::Pass(Counter::Related))
}
