//! The proxy's two legs joined: what arrives at one socket leaves by the other, and no process reads it.
//!
//! A socket is in `SOCKS` under its own cookie, put there by user space or by `enrol`; it is joined from the moment that
//! `PEERS` names the other's. Until then, and for whatever is not joined, bytes go where they always went.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, bpf_sock_ops, sk_action,
};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::{map, sock_ops, stream_verdict};
use aya_ebpf::maps::{Array, HashMap, SockHash};
use aya_ebpf::programs::{SkBuffContext, SockOpsContext};

/// More connections than any trial has at once.
const SOCKETS: u32 = 65_536;

#[map]
static SOCKS: SockHash<u64> = SockHash::with_max_entries(SOCKETS, 0);
#[map]
static PEERS: HashMap<u64, u64> = HashMap::with_max_entries(SOCKETS, 0);
/// The cookie of the proxy's network namespace: nobody else's sockets are enrolled.
#[map]
static NETNS: Array<u64> = Array::with_max_entries(1, 0);

#[stream_verdict]
pub fn join(ctx: SkBuffContext) -> u32 {
    // SAFETY: a helper without pointers to follow but the context.
    let own = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the value is copied at once.
    match unsafe { PEERS.get(own) }.copied() {
        Some(peer) => SOCKS.redirect_skb(&ctx, peer, 0) as u32,
        None => sk_action::SK_PASS,
    }
}

#[sock_ops]
pub fn enrol(ctx: SockOpsContext) -> u32 {
    // SAFETY: a read of the context that the verifier allows; volatile, or the compiler reads through a pointer it made.
    let op = unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).op) };
    if op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        return 1;
    }
    // SAFETY: helpers without pointers to follow but the context.
    let (netns, own) = unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_get_socket_cookie(ctx.as_ptr())) };
    if NETNS.get(0).copied() == Some(netns) {
        // SAFETY: the context is the kernel's own, and nothing else holds a reference to it.
        let ops: &mut bpf_sock_ops = unsafe { &mut *ctx.ops };
        let _ = SOCKS.update(own, ops, 0);
    }
    1
}
