//! The fixtures through the real datapath, the same files that `fixtures.rs` runs through the engine alone.
//!
//! They share one world: each replaces the cluster's objects, so that every fixture is a live change too.

use crate::NEEDS;
use anyhow::{Result, anyhow, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sluice_tests::fixture::Fixture;
use sluice_tests::harness;
use sluice_tests::rig::Rig;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Built by the first fixture that runs. One that cannot be built fails them all with the same words.
static RIG: LazyLock<Mutex<Result<Rig, String>>> =
    LazyLock::new(|| Mutex::new(Rig::start().map_err(|error| format!("{error:#}"))));

pub(crate) fn tests() -> Vec<Trial> {
    match Fixture::all() {
        Ok(fixtures) => {
            let mut tests: Vec<Trial> = spoilt(&fixtures).into_iter().collect();
            tests.extend(fixtures.into_iter().map(|fixture| {
                harness::test(format!("datapath: {}", fixture.name), NEEDS, move || run(&fixture))
            }));
            tests
        }
        Err(error) => vec![harness::test("fixtures are read", [], move || Err(error))],
    }
}

/// The comparison itself can fail: with the policies left out, what must be denied passes, and that is found.
fn spoilt(fixtures: &[Fixture]) -> Option<Trial> {
    let fixture = fixtures.iter().find(|fixture| fixture.name == "http-methods")?.clone();
    Some(harness::test("a datapath that does otherwise is found", NEEDS, move || {
        let without = |objects: &mut Vec<Value>| objects.retain(|object| object["kind"] != "L7NetworkPolicy");
        let mut rig = RIG.lock().unwrap_or_else(PoisonError::into_inner);
        let rig = rig.as_mut().map_err(|error| anyhow!("the world does not come up: {error}"))?;
        let Err(error) = rig.run_with(&fixture, without) else {
            bail!("a cluster without policies passes for one with them");
        };
        let text = format!("{error:#}");
        for sign in ["must be Refused, was (Passed", "denied requests reached", "no flow record"] {
            ensure!(text.contains(sign), "{sign:?} is not among what was found: {text}");
        }
        Ok(())
    }))
}

fn run(fixture: &Fixture) -> Result<()> {
    let mut rig = RIG.lock().unwrap_or_else(PoisonError::into_inner);
    match rig.as_mut() {
        Ok(rig) => rig.run(fixture),
        Err(error) => Err(anyhow!("the world does not come up: {error}")),
    }
}
