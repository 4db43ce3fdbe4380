//! Kubernetes' own expectations of `NetworkPolicy` as packets: the public corpus through the compiler and the loader
//! into the kernel, and every pair of pods, port and protocol tried in both families, for ingress, for egress and for
//! both.
//!
//! A fixed tenth of the cases, or with `SLUICE_LONG=1` (`cargo xtask test netpol --all`) all of them. The corpus lies
//! beside the project, or where `SLUICE_CORPUS` says.

#[path = "netpol/case.rs"]
mod case;
#[path = "netpol/round.rs"]
mod round;
#[path = "netpol/sctp.rs"]
mod sctp;
#[path = "netpol/sockets.rs"]
mod sockets;
#[path = "netpol/stage.rs"]
mod stage;

use anyhow::{Context, Result};
use case::{Case, read};
use libtest_mimic::Trial;
use rustix::thread::{CpuSet, sched_setaffinity};
use sluice_tests::harness::{self, Need};
use stage::{Played, Stage};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Of the cases that are played where not all are: every one whose place can be divided by this.
const PART: usize = 10;

/// What all tests share: they come one after the other.
#[derive(Default)]
struct Shared {
    stage: Option<Stage>,
    cases: usize,
    played: Played,
}

fn main() -> ExitCode {
    let folder = std::env::var_os("SLUICE_CORPUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"), PathBuf::from);
    let path = folder.join("networkpolicy/cases.json");
    let shared = Arc::new(Mutex::new(Shared::default()));
    let trials = match std::fs::read_to_string(&path).context("read").and_then(|text| read(&text)) {
        Ok(cases) => {
            let all = harness::long();
            let chosen = cases.into_iter().enumerate().filter(|(place, _)| all || place.is_multiple_of(PART));
            chosen.map(|(_, case)| trial(case, &shared)).collect()
        }
        Err(_) => {
            vec![harness::test("the corpus", [Need::Path(path)], || anyhow::bail!("it cannot be read"))]
        }
    };
    let start = Instant::now();
    let code = harness::main(1, trials);
    let shared = std::mem::take(&mut *shared.lock().expect("the tests are over"));
    let Played { cells, failed, probes } = shared.played;
    if cells > 0 {
        let passed = cells.saturating_sub(failed);
        println!(
            "corpus networkpolicy (packets): {cells} cells of {} cases, {passed} passed, {failed} failed, 0 otherwise \
             on purpose, 0 skipped",
            shared.cases
        );
        println!("{probes} opening packets, {:.1} s", start.elapsed().as_secs_f32());
    }
    code
}

fn trial(case: Case, shared: &Arc<Mutex<Shared>>) -> Trial {
    let shared = Arc::clone(shared);
    harness::test(case.name.clone(), [Need::Bpf], move || {
        let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shared = &mut *shared;
        // On a thread of its own: it goes from namespace to namespace.
        std::thread::scope(|scope| {
            let run = scope.spawn(|| play(&case, shared));
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn play(case: &Case, shared: &mut Shared) -> Result<()> {
    // One CPU's packets stay in order: see `round.rs`.
    let mut one = CpuSet::new();
    one.set(rustix::thread::sched_getcpu());
    sched_setaffinity(None, &one)?;
    let stage = match &mut shared.stage {
        Some(stage) => stage,
        empty => empty.insert(Stage::build()?),
    };
    shared.cases += 1;
    for (number, step) in case.steps.iter().enumerate() {
        let (played, told) = stage.play(step).with_context(|| format!("step {number}"))?;
        shared.played.cells += played.cells;
        shared.played.failed += played.failed;
        shared.played.probes += played.probes;
        told.with_context(|| format!("step {number}"))?;
    }
    Ok(())
}
