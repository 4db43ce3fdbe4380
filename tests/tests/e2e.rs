//! End to end: real pods, real eBPF, the product's own processes, real clients.
//!
//! Each test has a world of its own; the fixtures share one, one after the other.

#[path = "e2e/apiserver.rs"]
mod apiserver;
#[path = "e2e/attacks.rs"]
mod attacks;
#[path = "e2e/check.rs"]
mod check;
#[path = "e2e/fixtures.rs"]
mod fixtures;
#[path = "e2e/flows.rs"]
mod flows;
#[path = "e2e/handover.rs"]
mod handover;
#[path = "e2e/kernel.rs"]
mod kernel;
#[path = "e2e/life.rs"]
mod life;
#[path = "e2e/load.rs"]
mod load;
#[path = "e2e/requests.rs"]
mod requests;
#[path = "e2e/services.rs"]
mod services;
#[path = "e2e/storm.rs"]
mod storm;
// What kube-proxy writes is the same for both.
#[path = "datapath/translation.rs"]
mod translation;
// And so is what is left of a node.
#[path = "datapath/whole.rs"]
mod whole;

use sluice_tests::harness::{self, Need};
use sluice_tests::world::take_down_all;
use std::process::ExitCode;

/// What every test here needs.
const NEEDS: [Need; 4] =
    [Need::Bpf, Need::Binary("sluice-peer"), Need::Binary("sluice-control"), Need::Binary("sluice-proxy")];

fn main() -> ExitCode {
    let mut tests = fixtures::tests();
    tests.extend(check::tests());
    tests.extend(requests::tests());
    tests.extend(flows::tests());
    tests.extend(services::tests());
    tests.extend(apiserver::tests());
    tests.extend(attacks::tests());
    tests.extend(load::tests());
    tests.extend(kernel::tests());
    tests.extend(life::tests());
    tests.extend(handover::tests());
    tests.extend(storm::tests());
    let code = harness::main(2, tests);
    // The fixtures' world is never dropped: it is shared until the end.
    take_down_all();
    code
}
