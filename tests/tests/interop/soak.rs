//! The short form of `cargo xtask soak proxy`: every protocol, policies that change, two hand-overs, SIGKILL.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::harness::{self, Need};
use sluice_tests::soak::{self, Options};
use std::time::Duration;

const NEEDS: [Need; 3] = [Need::Bpf, Need::Binary("sluice-control"), Need::Binary("sluice-proxy")];
/// As many as an unoptimised proxy bears beside other tests.
const SHORT: Options = Options {
    length: Duration::from_secs(30),
    connections: 200,
    rate: 200,
    restart: Duration::from_secs(8),
    verbose: false,
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![harness::test("soak: nothing is lost and nothing wrong", NEEDS, short)]
}

fn short() -> Result<()> {
    let outcome = soak::run(&SHORT, |line| println!("{line}"))?;
    ensure!(outcome.good, "{}", outcome.summary);
    Ok(())
}
