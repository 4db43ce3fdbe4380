//! What the hosts of a link say to each other: ARP, neighbour discovery, multicast listener discovery.
//!
//! No rule judges it, so it passes only as what it claims to be: from its sender's own addresses, on its own link, and
//! with nothing in it but what it needs. Called by hooks A and B.

use crate::Fate;
use crate::maps::Generation;
use crate::packet::{Form, Packet, is_link_local, is_unspecified};
use crate::steer::Endpoint;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{Address, Counter, EndpointValue, hardware};

/// What becomes of what a pod says; `own` if it says it in its own name. Its hardware address was looked at.
#[inline(always)]
pub(crate) fn said(endpoint: Endpoint, value: &EndpointValue, packet: &Packet, own: bool) -> Fate {
    if !packet.is_terse {
        return Fate::Drop(Counter::Malformed);
    }
    let generation = endpoint.generation;
    let fine = match packet.form {
        // A probe for duplicates comes from nobody. (A reply from nobody is not terse.)
        Form::Arp => own || is_unspecified(&packet.src),
        Form::Neighbour => {
            near(endpoint, value, packet)
                && (own || is_unspecified(&packet.src) || unclaimed(generation, &packet.src))
        }
        Form::Advertisement => {
            near(endpoint, value, packet)
                && (own || unclaimed(generation, &packet.src))
                && (unclaimed(generation, &packet.target)
                    || generation.owner(&packet.target) == Some(endpoint.ifindex))
        }
        // A router's word.
        _ => false,
    };
    if fine { Fate::Pass(Counter::Neighbour) } else { Fate::Drop(Counter::Spoofed) }
}

/// What becomes of what a pod hears. Who speaks for a pod of this node is that pod, or the node that answers in its
/// place (proxy ARP).
#[inline(always)]
pub(crate) fn heard(ctx: &TcContext, endpoint: Endpoint, packet: &Packet) -> Fate {
    // SAFETY: a read of the context that the verifier allows.
    let arrived = unsafe { (*ctx.skb.skb).ingress_ifindex };
    let forged = |speaker: &Address| match endpoint.generation.endpoint(speaker) {
        Some(pod) => arrived != 0 && arrived != pod && !endpoint.generation.reached_by(pod, arrived),
        None => false,
    };
    if forged(&packet.src) || (packet.form == Form::Advertisement && forged(&packet.target)) {
        return Fate::Drop(Counter::Spoofed);
    }
    Fate::Pass(Counter::Neighbour)
}

/// Whether a neighbour's word goes no further than the link: the node forwards what is for another address, and
/// these packets meet no rule on their way. What a bridge carries to somebody else's hardware address does not come to
/// the node, so that a pod of another node on the same link can be asked whether it is still there.
#[inline(always)]
fn near(endpoint: Endpoint, value: &EndpointValue, packet: &Packet) -> bool {
    let generation = endpoint.generation;
    let bridged = value.way != endpoint.ifindex;
    packet.is_group()
        || is_link_local(&packet.dst)
        || generation.endpoint(&packet.dst).is_some()
        || generation.owner(&packet.dst) == Some(sluice_bpf_abi::LOCAL_NODE)
        || (bridged && generation.owner(&hardware(packet.to())).is_none())
}

/// Whether an address is of the link, and not one of the node's: nobody takes the gateway's place.
#[inline(always)]
fn unclaimed(generation: Generation, address: &Address) -> bool {
    is_link_local(address) && generation.owner(address).is_none()
}
