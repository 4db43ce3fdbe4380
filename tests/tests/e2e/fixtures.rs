//! The fixtures through the real datapath, the same files that `fixtures.rs` runs through the engine alone.
//!
//! They share one world: each replaces the cluster's objects, so that every fixture is a live change too.

use crate::NEEDS;
use anyhow::{Result, anyhow};
use libtest_mimic::Trial;
use sluice_tests::fixture::Fixture;
use sluice_tests::harness;
use sluice_tests::rig::Rig;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Built by the first fixture that runs. One that cannot be built fails them all with the same words.
static RIG: LazyLock<Mutex<Result<Rig, String>>> =
    LazyLock::new(|| Mutex::new(Rig::start().map_err(|error| format!("{error:#}"))));

pub(crate) fn tests() -> Vec<Trial> {
    match Fixture::all() {
        Ok(fixtures) => fixtures
            .into_iter()
            .map(|fixture| harness::test(format!("datapath: {}", fixture.name), NEEDS, move || run(&fixture)))
            .collect(),
        Err(error) => vec![harness::test("fixtures are read", [], move || Err(error))],
    }
}

fn run(fixture: &Fixture) -> Result<()> {
    let mut rig = RIG.lock().unwrap_or_else(PoisonError::into_inner);
    match rig.as_mut() {
        Ok(rig) => rig.run(fixture),
        Err(error) => Err(anyhow!("the world does not come up: {error}")),
    }
}
