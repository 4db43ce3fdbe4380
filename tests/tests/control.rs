//! The control plane against a real API server: our definitions, and the cluster as a source of objects.
//!
//! One API server for the tests that only add to it, each in a namespace of its own; those that stop it, or that
//! look at the whole cluster, have their own.

#[path = "control/away.rs"]
mod away;
#[path = "control/cel.rs"]
mod cel;
#[path = "control/cluster.rs"]
mod cluster;
#[path = "control/definitions.rs"]
mod definitions;
#[path = "control/node.rs"]
mod node;
#[path = "control/plane.rs"]
mod plane;
#[path = "control/status.rs"]
mod status;

use anyhow::{Result, anyhow};
use sluice_tests::apiserver::ApiServer;
use sluice_tests::harness::{self, Need};
use std::process::ExitCode;
use std::sync::OnceLock;

/// What every test here needs.
const NEEDS: [Need; 2] = [Need::ApiServer, Need::Binary("sluice-control")];

/// The server that tests share, with what we ship installed in it.
fn shared() -> Result<&'static ApiServer> {
    let started = SHARED.get_or_init(|| {
        let server = ApiServer::start().and_then(|server| server.install().map(|()| server));
        server.map_err(|error| format!("{error:#}"))
    });
    started.as_ref().map_err(|error| anyhow!("{error}"))
}

static SHARED: OnceLock<Result<ApiServer, String>> = OnceLock::new();

fn main() -> ExitCode {
    let tests = [definitions::tests(), cel::tests(), cluster::tests(), away::tests(), status::tests()];
    let code = harness::main(2, tests.into_iter().flatten().collect());
    // The shared server is never dropped.
    sluice_tests::world::take_down_all();
    code
}
