//! A connection to one port, led into the proxy's sockets: where those are in a network namespace of the proxy's own
//! (`apart`), and where they are in the node's (`within`).
//!
//! Both have the same flow table and make the same one look-up in it; what is compared is the way, not the verdict.

use aya_ebpf::bindings::{
    TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
};
use aya_ebpf::helpers::{
    bpf_get_listener_sock, bpf_redirect, bpf_redirect_neigh, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_release,
    bpf_skc_lookup_tcp,
};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::TcContext;

const FLOWS_ROOM: u32 = 65_536;
const ETH_P_IP: u16 = 0x0800;
const TCP: u8 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;
const PACKET_HOST: u32 = 0;
const CURRENT_NETNS: u64 = u64::MAX;
const SYN: u8 = 2;
const SYN_OR_ACK: u8 = 0x12;
/// The client's leg: its client speaks first.
const CLIENT: u32 = 1;
/// What answers the proxy's own connection.
const UPSTREAM: u32 = 2;
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// As user space writes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Settings {
    /// The helper's end that packets are redirected to.
    helper: u32,
    /// The end that the proxy's packets come in by; with `within` nothing does.
    outer: u32,
    /// What the proxy's sockets are marked with, `within`.
    own_mark: u32,
    /// What makes a packet local, `within`.
    local_mark: u32,
    /// The port that is proxied, network order.
    port: [u8; 2],
    /// The listener's, network order.
    listener: [u8; 2],
}

/// A connection as one end's packets look, network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tuple {
    src: [u8; 4],
    dst: [u8; 4],
    sport: [u8; 2],
    dport: [u8; 2],
}

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
/// What goes to the proxy, by how it looks on its way there.
#[map]
static FLOWS: LruHashMap<Tuple, u32> = LruHashMap::with_max_entries(FLOWS_ROOM, 0);
/// The device that a pod of the node is reached by.
#[map]
static DEVICES: HashMap<[u8; 4], u32> = HashMap::with_max_entries(64, 0);

impl Tuple {
    /// None of what is not plain TCP over IPv4, which passes: nothing is enforced here.
    #[inline(always)]
    fn read(ctx: &TcContext) -> Option<(Self, u8)> {
        let protocol: u16 = ctx.load(12).ok()?;
        let head: [u8; 20] = ctx.load(14).ok()?;
        if u16::from_be(protocol) != ETH_P_IP || head[0] != 0x45 || head[9] != TCP {
            return None;
        }
        let tcp: [u8; 14] = ctx.load(34).ok()?;
        let tuple = Self {
            src: [head[12], head[13], head[14], head[15]],
            dst: [head[16], head[17], head[18], head[19]],
            sport: [tcp[0], tcp[1]],
            dport: [tcp[2], tcp[3]],
        };
        Some((tuple, tcp[13]))
    }

    #[inline(always)]
    fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }

    #[inline(always)]
    fn lookup(self) -> bpf_sock_tuple {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: u32::from_ne_bytes(self.src),
            daddr: u32::from_ne_bytes(self.dst),
            sport: u16::from_ne_bytes(self.sport),
            dport: u16::from_ne_bytes(self.dport),
        };
        bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }
    }

    /// Whether a packet goes to the proxy. A new connection to the port is remembered.
    #[inline(always)]
    fn is_proxied(&self, flags: u8, settings: &Settings) -> bool {
        // SAFETY: a word, copied at once.
        if unsafe { FLOWS.get(*self) }.is_some() {
            return true;
        }
        let opens = flags & SYN_OR_ACK == SYN && self.dport == settings.port;
        opens && FLOWS.insert(*self, CLIENT, 0).is_ok()
    }

    /// A packet of the proxy's: what will answer its own connections is remembered.
    #[inline(always)]
    fn note(&self) {
        let back = self.reversed();
        // SAFETY: as above.
        if unsafe { FLOWS.get(back) }.is_none() {
            let _ = FLOWS.insert(back, UPSTREAM, 0);
        }
    }
}

/// Hooks A and B, apart.
#[classifier]
pub fn apart_pod(ctx: TcContext) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return PASS };
    // SAFETY: a read of the context that the verifier allows.
    if unsafe { (*ctx.skb.skb).ingress_ifindex } == settings.outer {
        return PASS;
    }
    to_helper(&ctx, settings)
}

/// Hook C, apart: in the proxy's namespace no socket is another's.
#[classifier]
pub fn apart_inner(ctx: TcContext) -> i32 {
    let (Some(settings), Some((tuple, _))) = (SETTINGS.get(0), Tuple::read(&ctx)) else { return DROP };
    if ctx.change_type(PACKET_HOST).is_ok() && assign(&ctx, tuple, settings, None) { PASS } else { DROP }
}

/// Hook D, apart: straight to a pod of the node, into the stack what is for elsewhere.
#[classifier]
pub fn apart_outer(ctx: TcContext) -> i32 {
    let Some((tuple, _)) = Tuple::read(&ctx) else { return DROP };
    tuple.note();
    // SAFETY: a word, copied at once.
    match unsafe { DEVICES.get(tuple.dst) }.copied() {
        // SAFETY: a helper without pointers to follow.
        Some(device) => unsafe { bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) as i32 },
        None => PASS,
    }
}

/// Hook A, within: assigned where it came in.
#[classifier]
pub fn within_from_pod(ctx: TcContext) -> i32 {
    let (Some(settings), Some((tuple, flags))) = (SETTINGS.get(0), Tuple::read(&ctx)) else { return PASS };
    if !tuple.is_proxied(flags, settings) {
        return PASS;
    }
    local(&ctx, tuple, settings)
}

/// Hook B, within: a packet can be assigned only where one comes in, so it goes round by the helper.
#[classifier]
pub fn within_to_pod(ctx: TcContext) -> i32 {
    let Some(settings) = SETTINGS.get(0) else { return PASS };
    // SAFETY: a read of the context that the verifier allows.
    if unsafe { (*ctx.skb.skb).mark } == settings.own_mark {
        if let Some((tuple, _)) = Tuple::read(&ctx) {
            tuple.note();
        }
        return PASS;
    }
    to_helper(&ctx, settings)
}

/// The device to elsewhere, within: the proxy's connections that no hook B sees are remembered here.
#[classifier]
pub fn within_uplink(ctx: TcContext) -> i32 {
    let (Some(settings), Some((tuple, _))) = (SETTINGS.get(0), Tuple::read(&ctx)) else { return PASS };
    // SAFETY: a read of the context that the verifier allows.
    if unsafe { (*ctx.skb.skb).mark } == settings.own_mark {
        tuple.note();
    }
    PASS
}

/// Hook C, within.
#[classifier]
pub fn within_inner(ctx: TcContext) -> i32 {
    let (Some(settings), Some((tuple, _))) = (SETTINGS.get(0), Tuple::read(&ctx)) else { return DROP };
    if ctx.change_type(PACKET_HOST).is_err() {
        return DROP;
    }
    local(&ctx, tuple, settings)
}

#[inline(always)]
fn to_helper(ctx: &TcContext, settings: &Settings) -> i32 {
    match Tuple::read(ctx) {
        // SAFETY: a helper without pointers.
        Some((tuple, flags)) if tuple.is_proxied(flags, settings) => unsafe {
            bpf_redirect(settings.helper, 0) as i32
        },
        _ => PASS,
    }
}

/// To the proxy's socket in the node's own namespace, and marked, so that the stack takes it for local.
#[inline(always)]
fn local(ctx: &TcContext, tuple: Tuple, settings: &Settings) -> i32 {
    if !assign(ctx, tuple, settings, Some(settings.own_mark)) {
        return DROP;
    }
    ctx.set_mark(settings.local_mark);
    PASS
}

/// Assigns a packet to the connection that it is of, else to the listener. With a mark: to no socket that has another.
#[inline(always)]
fn assign(ctx: &TcContext, tuple: Tuple, settings: &Settings, mark: Option<u32>) -> bool {
    if assign_to(ctx, tuple, mark, false) {
        return true;
    }
    let listener = Tuple { dst: [127, 0, 0, 1], dport: settings.listener, ..tuple };
    assign_to(ctx, listener, mark, true)
}

#[inline(always)]
fn assign_to(ctx: &TcContext, tuple: Tuple, mark: Option<u32>, listens: bool) -> bool {
    let mut tuple = tuple.lookup();
    // SAFETY: the tuple lives on this stack for the call; the reference is released on every way out.
    unsafe {
        let sk = bpf_skc_lookup_tcp(
            ctx.skb.skb.cast(),
            &raw mut tuple,
            size_of_val(&tuple.__bindgen_anon_1.ipv4) as u32,
            CURRENT_NETNS,
            0,
        );
        if sk.is_null() {
            return false;
        }
        let mut good = ((*sk).state == TCP_LISTEN) == listens;
        if let (true, Some(mark)) = (good, mark) {
            // A request socket is judged by its listener; one in TIME_WAIT is nobody's.
            let full =
                if (*sk).state == TCP_NEW_SYN_RECV { bpf_get_listener_sock(sk) } else { bpf_sk_fullsock(sk) };
            good = !full.is_null() && (*full).mark == mark;
        }
        if good {
            good = bpf_sk_assign(ctx.skb.skb.cast(), sk.cast(), 0) == 0;
        }
        bpf_sk_release(sk.cast());
        good
    }
}
