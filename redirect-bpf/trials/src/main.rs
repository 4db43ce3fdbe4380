//! eBPF programs that only benchmarks load: what was tried beside what ships, so that it can be tried again.
//!
//! `steer`: the two places for the proxy's sockets, each with as little as it needs. `join`: the proxy's two legs joined
//! in the kernel. Built by `cargo xtask bench`; in no binary. Knows nothing of rows, IPv6 or fragments: it compares
//! ways, it enforces nothing.

#![no_std]
#![no_main]

mod join;
mod steer;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics: the verifier would refuse the loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
