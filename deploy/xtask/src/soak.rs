//! Runs a part of the product under everything at once for as long as it is told, and says what went wrong.
//!
//! Builds with optimisations, as people run it. Knows nothing of what is tested. Called by `soak`.

use crate::place::Place;
use crate::setup::{self, Machine};
use crate::step;
use anyhow::bail;
use clap::{Args, ValueEnum};

/// What is soaked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Whole nodes: every protocol, a policy that changes every second, an agent that is replaced every minute
    Proxy,
}

/// How.
#[derive(Clone, Debug, Args)]
pub(crate) struct Form {
    /// How long, without the phase of SIGKILL at the end
    #[arg(long, default_value = "30")]
    minutes: String,
    /// Connections at once
    #[arg(long, default_value_t = 5000)]
    connections: u32,
    /// Requests a second, over all of them
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Seconds between two agents of a node
    #[arg(long, default_value_t = 60)]
    restart: u32,
    /// Tell each loss as it happens
    #[arg(long)]
    verbose: bool,
}

/// Builds, and becomes the soak: its exit code says whether it was clean.
pub(crate) fn run(place: &Place, what: What, form: &Form) -> anyhow::Result<bool> {
    let What::Proxy = what;
    if !setup::is_root() {
        bail!("the soak creates network namespaces and loads eBPF programs: run it as root");
    }
    if let Machine::Lacking(what) = setup::machine(place)? {
        bail!("the soak needs tools that are missing: {what}");
    }
    let mut build = place.cargo(&["build", "--locked", "--release"]);
    build.args(["-p", "sluice-tests", "-p", "sluice-proxy", "-p", "sluice-control", "--bins"]);
    step::command("building with optimisations (the first time takes minutes)", &mut build)?;
    let mut soak = place.command(place.target.join("release/sluice-soak"));
    soak.args(["--minutes", &form.minutes, "--connections", &form.connections.to_string()]);
    soak.args(["--rate", &form.rate.to_string(), "--restart", &form.restart.to_string()]);
    if form.verbose {
        soak.arg("--verbose");
    }
    // Ctrl-C is for the soak, which cleans up after itself.
    Err(step::become_command(&mut soak))
}
