//! The eBPF programs: hooks A, B, C and D of the datapath, as tcx classifiers.
//!
//! They decide L3 and L4, and hand the flows that an L7 rule governs to the proxy's own network namespace.
//! They never look behind a transport header: no L7 here. Everything not understood is dropped and counted
//! by reason. Loaded, attached and pinned by `sluice-redirect`.
//!
//! ```text
//!   pod ── veth ──A──▶ node's stack ──▶ …            A from_pod    to-proxy flows, replies to upstreams ─┐
//!   pod ◀── veth ──B── node's stack ◀── …            B to_pod      the same, seen at the other end      ─┤
//!   node's stack ◀──D── helper outer ◀── inner ◀── proxy            D from_proxy  marks both legs           │
//!                       helper outer ──▶ inner ──C──▶ proxy sockets C to_proxy    assigns to its socket  ◀──┘
//! ```

#![no_std]
#![no_main]

mod answer;
mod error;
mod event;
mod fast;
mod flow;
mod fragment;
mod leg;
mod link;
mod maps;
mod packet;
mod pod;
mod proxy;
mod row;
mod steer;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use sluice_bpf_abi::{COUNTERS, Counter, FlowKind};

/// What becomes of a packet. The reason is counted either way.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    /// It goes on.
    Pass(Counter),
    /// It goes to the proxy's namespace.
    ToProxy(Counter),
    /// It goes to a local endpoint by this device, past the node's stack.
    Straight(u32, Counter),
    /// It ends here.
    Drop(Counter),
    /// It ends here, and its sender is told.
    Answer(Counter),
}

impl Fate {
    /// As a function that is not inlined returns it. [`Fate::Straight`], which none does, is none.
    #[inline(always)]
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Pass(reason) => PASS | reason as u32,
            Self::ToProxy(reason) => TO_PROXY | reason as u32,
            Self::Answer(reason) => ANSWER | reason as u32,
            Self::Straight(_, reason) | Self::Drop(reason) => reason as u32,
        }
    }

    /// What [`Fate::code`] made.
    #[inline(always)]
    pub(crate) fn from_code(code: u32) -> Self {
        let Some(reason) = reason(code & REASON) else { return Self::Drop(Counter::Malformed) };
        match code & !REASON {
            PASS => Self::Pass(reason),
            TO_PROXY => Self::ToProxy(reason),
            ANSWER => Self::Answer(reason),
            _ => Self::Drop(reason),
        }
    }
}

/// The counter of this number.
#[inline(always)]
pub(crate) fn reason(number: u32) -> Option<Counter> {
    if number >= COUNTERS {
        return None;
    }
    // SAFETY: a counter is a `u32`, and they are numbered without a gap from 0 to below this.
    Some(unsafe { core::mem::transmute::<u32, Counter>(number) })
}

const PASS: u32 = 1 << 16;
const TO_PROXY: u32 = 2 << 16;
const ANSWER: u32 = 3 << 16;
const REASON: u32 = 0xff;
const _: () = assert!(COUNTERS <= REASON);

// Inlined, all of them: the name of a function that is not has a hash of the checkout's place in it, and the object
// is the same byte for byte wherever it is built.
#[classifier]
#[inline(always)]
pub fn from_pod(ctx: TcContext) -> i32 {
    if let Some(fate) = fast::known(&ctx, FlowKind::Egress) {
        return finish(fate);
    }
    if answer::is_own(&ctx, FlowKind::Egress) {
        return TC_ACT_UNSPEC;
    }
    told(&ctx, FlowKind::Egress, pod::from_pod(&ctx))
}

#[classifier]
#[inline(always)]
pub fn to_pod(ctx: TcContext) -> i32 {
    if let Some(fate) = fast::known(&ctx, FlowKind::Ingress) {
        return finish(fate);
    }
    if answer::is_own(&ctx, FlowKind::Ingress) {
        return TC_ACT_UNSPEC;
    }
    told(&ctx, FlowKind::Ingress, pod::to_pod(&ctx))
}

#[classifier]
#[inline(always)]
pub fn to_proxy(ctx: TcContext) -> i32 {
    finish(proxy::to_proxy(&ctx))
}

#[classifier]
#[inline(always)]
pub fn from_proxy(ctx: TcContext) -> i32 {
    finish(leg::from_proxy(&ctx))
}

/// The same at a pod's own hooks, whose user space is told of.
#[inline(always)]
fn told(ctx: &TcContext, hook: FlowKind, fate: Fate) -> i32 {
    let fate = match fate {
        Fate::ToProxy(_) if maps::config().helper_ifindex == 0 => Fate::Drop(Counter::NoProxy),
        fate => fate,
    };
    match fate {
        Fate::Answer(reason) => {
            event::answered();
            event::tell(ctx, hook, Fate::Drop(reason));
            maps::count(reason);
            // The packet is no longer what was read of it.
            answer::send(ctx, hook)
        }
        fate => {
            event::tell(ctx, hook, fate);
            finish(fate)
        }
    }
}

#[inline(always)]
fn finish(fate: Fate) -> i32 {
    match fate {
        Fate::Pass(reason) => {
            maps::count(reason);
            // Not OK, which would end the chain: what else judges on this device is asked as well.
            TC_ACT_UNSPEC
        }
        // The proxy's ends answer nothing: the proxy does.
        Fate::Drop(reason) | Fate::Answer(reason) => {
            maps::count(reason);
            TC_ACT_SHOT as i32
        }
        Fate::Straight(device, reason) => {
            maps::count(reason);
            // SAFETY: a helper without pointers to follow. The kernel finds the neighbour, and hook B comes
            // after, on the endpoint's veth.
            unsafe { aya_ebpf::helpers::bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) as i32 }
        }
        Fate::ToProxy(reason) => {
            let helper = maps::config().helper_ifindex;
            if helper == 0 {
                maps::count(Counter::NoProxy);
                return TC_ACT_SHOT as i32;
            }
            maps::count(reason);
            // SAFETY: a helper without pointers. A device that is gone makes the kernel drop the packet.
            unsafe { aya_ebpf::helpers::bpf_redirect(helper, 0) as i32 }
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics: the verifier would refuse the loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
