//! Clients and servers that nobody here wrote, through whole nodes: what is allowed, what is denied, and the life of
//! their connections after it.
//!
//! `cargo xtask setup` gets them; the pins stand in tests/interop. All tests share one world.

#[path = "interop/browser.rs"]
mod browser;
#[path = "interop/frames.rs"]
mod frames;
#[path = "interop/grpc.rs"]
mod grpc;
#[path = "interop/http.rs"]
mod http;
#[path = "interop/parts.rs"]
mod parts;
#[path = "interop/soak.rs"]
mod soak;
#[path = "interop/stage.rs"]
mod stage;
#[path = "interop/websocket.rs"]
mod websocket;

use sluice_tests::harness;
use sluice_tests::world::take_down_all;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut tests = http::tests();
    tests.extend(grpc::tests());
    tests.extend(websocket::tests());
    tests.extend(frames::tests());
    tests.extend(browser::tests());
    tests.extend(soak::tests());
    let code = harness::main(2, tests);
    // The world is never dropped: it is shared until the end.
    take_down_all();
    code
}
