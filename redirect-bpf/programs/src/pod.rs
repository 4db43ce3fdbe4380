//! Hooks A and B: the two ends of a pod's veth as the node sees them.

use crate::flow::{self, backward, forward, recall, touch};
use crate::maps::{Generation, config};
use crate::packet::{Form, Packet, TCP, UDP};
use crate::row::proxy_has;
use crate::steer::Endpoint;
use crate::{Fate, error, fragment, link};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{
    Counter, EndpointValue, FlowKind, FlowState, RowKey, config_flag, endpoint_flag, flow_flag,
};

/// Tunnels without ports: IP in IP (RFC 2003), 6in4 (RFC 4213), GRE (RFC 2784).
const IP_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;

#[inline(always)]
fn endpoint(ctx: &TcContext) -> Option<(Endpoint, EndpointValue)> {
    // SAFETY: a read of the context that the verifier allows.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let generation = Generation::current();
    let value = generation.behind(ifindex)?;
    let profile = value.profile;
    Some((Endpoint { ifindex, profile, generation, flags: 0, is_lasting: false, via: 0 }, value))
}

/// Hook A: what a pod sends.
#[inline(always)]
pub(crate) fn from_pod(ctx: &TcContext) -> Fate {
    Packet::read(ctx);
    fragment::settle(ctx, FlowKind::Egress, Fate::from_code(judge_from_pod(ctx.skb.skb)))
}

/// Hook B: what a pod is sent.
#[inline(always)]
pub(crate) fn to_pod(ctx: &TcContext) -> Fate {
    Packet::read(ctx);
    let code = match judge_to_pod(ctx.skb.skb) {
        FROM_HOST => judge_from_host(ctx.skb.skb),
        code => code,
    };
    fragment::settle(ctx, FlowKind::Ingress, Fate::from_code(code))
}

// Functions of their own: the kernel gives a program 512 bytes of stack, and those that are inside each other share them.
// Reading has given its part back when judging begins.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_from_pod(skb: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(skb);
    let Some((endpoint, value)) = endpoint(&ctx) else { return Fate::Drop(Counter::NoEndpoint).code() };
    match Packet::current() {
        Ok(packet) => {
            packet.epoch.set(endpoint.generation.epoch);
            leaving(&ctx, endpoint, &value, packet).code()
        }
        Err(reason) => Fate::Drop(reason).code(),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_to_pod(skb: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(skb);
    let Some((endpoint, value)) = endpoint(&ctx) else { return Fate::Drop(Counter::NoEndpoint).code() };
    match Packet::current() {
        Ok(packet) => {
            packet.epoch.set(endpoint.generation.epoch);
            arriving(&ctx, endpoint, value.way, packet).map_or(FROM_HOST, Fate::code)
        }
        Err(reason) => Fate::Drop(reason).code(),
    }
}

/// What [`judge_to_pod`] returns of what a socket of the node sends: no fate's code.
const FROM_HOST: u32 = u32::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_from_host(skb: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(skb);
    let Some((endpoint, _)) = endpoint(&ctx) else { return Fate::Drop(Counter::NoEndpoint).code() };
    match Packet::current() {
        Ok(packet) => {
            packet.epoch.set(endpoint.generation.epoch);
            from_host(&ctx, endpoint, packet).code()
        }
        Err(reason) => Fate::Drop(reason).code(),
    }
}

#[inline(always)]
fn leaving(ctx: &TcContext, endpoint: Endpoint, value: &EndpointValue, packet: &Packet) -> Fate {
    if value.flags & endpoint_flag::MAC != 0 && !packet.is_from(&value.mac) {
        return Fate::Drop(Counter::SpoofedMac);
    }
    let own = endpoint.generation.owner(&packet.src) == Some(endpoint.ifindex);
    match packet.form {
        Form::Flow | Form::Error if own => from_own_address(ctx, endpoint, packet),
        // If its packet's first one passed.
        Form::Later if own => Fate::Pass(Counter::FragmentPassed),
        Form::Flow | Form::Error | Form::Later => Fate::Drop(Counter::Spoofed),
        _ => link::said(endpoint, value, packet, own),
    }
}

#[inline(always)]
fn from_own_address(ctx: &TcContext, mut endpoint: Endpoint, packet: &Packet) -> Fate {
    if endpoint.generation.owner(&packet.dst) == Some(endpoint.ifindex) && !to_service(endpoint, packet) {
        return to_itself(endpoint, packet);
    }
    if is_encapsulated(packet) && endpoint.generation.is_node(&packet.dst) {
        return Fate::Drop(Counter::Encapsulated);
    }
    if packet.form == Form::Error
        && let Some(fate) = error::sent(endpoint, packet)
    {
        return fate;
    }
    // A tunnel may be set up at any time, without another generation.
    endpoint.is_lasting = packet.protocol != UDP || !endpoint.generation.is_node(&packet.dst);
    endpoint.steer(ctx, packet, FlowKind::Egress, FlowKind::Ingress)
}

/// Whether a node may take this for a packet of its tunnels: what is inside would never have met a rule.
#[inline(always)]
fn is_encapsulated(packet: &Packet) -> bool {
    match packet.protocol {
        // Host order, and a place that has none is 0.
        UDP => packet.dport != [0; 2] && config().tunnels.contains(&u16::from_be_bytes(packet.dport)),
        IP_IN_IP | IPV6_IN_IP | GRE => true,
        _ => false,
    }
}

/// What a pod sends itself is remembered, so that hook B knows it from what is forged, and on its account.
#[inline(always)]
fn to_itself(endpoint: Endpoint, packet: &Packet) -> Fate {
    let key = forward(endpoint.ifindex, FlowKind::Egress, packet);
    if let Some(entry) = recall(&key).filter(|entry| entry.flags & flow_flag::SELF != 0) {
        touch(&key, entry, packet, true);
        return Fate::Pass(Counter::Itself);
    }
    let entry = flow::entry(endpoint.generation.epoch, FlowState::Direct, flow_flag::SELF, 0, 0);
    match flow::remember(&key, &entry) {
        Ok(()) => Fate::Pass(Counter::Itself),
        Err(full) => Fate::Drop(full),
    }
}

/// Whether a Service has the pod's own address (`externalIPs` may be any): a translation would lead the packet to
/// whoever stands behind it, and the pod's word with itself would be its way round every rule.
#[inline(always)]
fn to_service(endpoint: Endpoint, packet: &Packet) -> bool {
    let protocol = RowKey::protocol_of(packet.protocol);
    let service = RowKey::has_ports(protocol)
        && endpoint.generation.service(&packet.dst, packet.dport, protocol).is_some();
    if service {
        // What was remembered when there was no such Service is never judged.
        let key = forward(endpoint.ifindex, FlowKind::Egress, packet);
        if recall(&key).is_some_and(|entry| entry.flags & flow_flag::SELF != 0) {
            flow::forget(&key);
        }
    }
    service
}

/// `None`: a socket of the node sends it.
#[inline(always)]
fn arriving(ctx: &TcContext, mut endpoint: Endpoint, way: u32, packet: &Packet) -> Option<Fate> {
    if !matches!(packet.form, Form::Flow | Form::Error | Form::Later) {
        return Some(link::heard(ctx, endpoint, packet));
    }
    let mine = endpoint.generation.owner(&packet.dst) == Some(endpoint.ifindex);
    if !mine && !packet.is_group() {
        return Some(Fate::Drop(Counter::NotMine));
    }
    // SAFETY: reads of the context that the verifier allows. `sk` is only compared with null.
    let (socket, arrived) = unsafe {
        let skb = ctx.skb.skb;
        (!(*skb).__bindgen_anon_2.sk.is_null(), (*skb).ingress_ifindex)
    };
    // A socket alone does not make it the node's: a frame that only crossed a bridge still carries the
    // sending pod's. What the node sends itself never arrived by any device.
    let host = socket && arrived == 0;
    let config = config();
    // The mark is no proof: any process of the node with CAP_NET_ADMIN can set it, and a CNI's rules may have put
    // bits of their own into it. Where a packet came in is the kernel's word, and hook D was there.
    let carried = config.helper_ifindex != 0 && arrived == config.helper_ifindex;
    let later = packet.form == Form::Later;
    if carried && !later && is_leg(endpoint, packet) {
        return Some(Fate::Pass(Counter::FromProxy));
    }
    if host && !later {
        return None;
    }
    match endpoint.generation.endpoint(&packet.src) {
        Some(sender) if sender == endpoint.ifindex && !later => {
            return Some(from_itself(endpoint, packet));
        }
        // A local pod's packet comes from its veth, or over the bridge that this is a port of. From anywhere
        // else its address is forged, and hook A never saw it.
        Some(sender)
            if !carried
                && sender != endpoint.ifindex
                && arrived != sender
                && !endpoint.generation.reached_by(sender, arrived) =>
        {
            return Some(Fate::Drop(Counter::Spoofed));
        }
        _ => {}
    }
    if later {
        return Some(Fate::Pass(Counter::FragmentPassed));
    }
    if packet.form == Form::Error
        && let Some(fate) = error::received(endpoint, packet)
    {
        return Some(fate);
    }
    // It crossed the bridge that this is a port of, and netfilter was not asked.
    let crossed = way != endpoint.ifindex && endpoint.generation.reached_by(arrived, way);
    if crossed && config.flags & netfilter_bit(packet) == 0 {
        endpoint.flags = flow_flag::UNSEEN;
    }
    // What comes from the proxy is judged by what its sockets know, and what a socket sends by whose it is.
    endpoint.is_lasting = !carried && arrived != 0;
    endpoint.via = arrived;
    Some(endpoint.steer(ctx, packet, FlowKind::Ingress, FlowKind::Egress))
}

/// Whether the proxy knew, when it sent this, that it is for this endpoint: it opened the connection to it, or
/// answers one that the endpoint opened. Where it asked for a service, and a translation chose this endpoint
/// behind its back, nobody has judged the endpoint's side yet.
#[inline(always)]
fn is_leg(endpoint: Endpoint, packet: &Packet) -> bool {
    let key = forward(endpoint.ifindex, FlowKind::Upstream, packet);
    if let Some(entry) = recall(&key) {
        touch(&key, entry, packet, true);
        return true;
    }
    let key = backward(endpoint.ifindex, FlowKind::Egress, packet);
    let answered = if packet.is_open() { None } else { recall(&key) };
    answered.map(|entry| touch(&key, entry, packet, false)).is_some()
}

/// The bit that says that bridged frames of this family are seen by netfilter.
#[inline(always)]
pub(crate) fn netfilter_bit(packet: &Packet) -> u8 {
    if packet.v6 { config_flag::BRIDGE_NF_V6 } else { config_flag::BRIDGE_NF_V4 }
}

/// From a socket of the node itself, which reaches its own pods unless the Admin tier says otherwise. What it opens is
/// remembered, so that the pod's answers pass hook A; what the pod opened stays as it was judged.
#[inline(always)]
fn from_host(ctx: &TcContext, endpoint: Endpoint, packet: &Packet) -> Fate {
    // The proxy's own connection may have led to the node.
    if !packet.is_open() && recall(&backward(endpoint.ifindex, FlowKind::Upstream, packet)).is_some() {
        return Fate::ToProxy(Counter::UpstreamReply);
    }
    if packet.form == Form::Error {
        return match error::received(endpoint, packet) {
            // The node's own word on the proxy's packets: its tunnel's MTU, or that it has no route.
            Some(Fate::ToProxy(reason)) => Fate::ToProxy(reason),
            // An error answers what was judged; it is no flow of its own that the pod could answer in turn.
            _ => Fate::Pass(Counter::Host),
        };
    }
    let answered = backward(endpoint.ifindex, FlowKind::Egress, packet);
    let known = if packet.is_open() { None } else { recall(&answered) };
    if let Some(entry) = known {
        touch(&answered, entry, packet, false);
    } else {
        // The entry of the proxy's connection was evicted, and the proxy has it all the same.
        if packet.protocol == TCP && !packet.is_open() && proxy_has(ctx, packet) {
            return Fate::ToProxy(Counter::UpstreamReply);
        }
        return endpoint.from_host(ctx, packet);
    }
    Fate::Pass(Counter::Host)
}

/// Its own packet, come back; anybody else's with its address is forged.
#[inline(always)]
fn from_itself(endpoint: Endpoint, packet: &Packet) -> Fate {
    let key = forward(endpoint.ifindex, FlowKind::Egress, packet);
    match recall(&key) {
        Some(entry) if entry.flags & flow_flag::SELF != 0 => Fate::Pass(Counter::Itself),
        _ => Fate::Drop(Counter::Spoofed),
    }
}
