//! The datapath measured: nothing attached, nftables and our programs, side by side in one run.
//!
//! Rounds alternate between worlds that are all up, so that what else the machine does hits all alike; what is said is
//! the median of the rounds. `cargo xtask bench datapath` runs it; as root, and on nothing but its own namespaces.
//! With `arrangements` or `sockmap` it compares what ships with what was tried instead (`redirect-bpf/trials`).

mod arrangements;
mod join;
mod relay;
mod sockmap;
mod splice;
mod table;
mod traffic;
mod world;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use std::collections::BTreeMap;
use std::time::Duration;
use table::{Programs, Results};
use traffic::{Workload, run};
use world::{Change, Judge, SERVER, World};

/// The sizes that are compared: who may reach whom, a rule for each of nftables.
const RULES: [usize; 3] = [10, 1_000, 10_000];
/// How often everything is measured: the median of an odd number is one of them.
const ROUNDS: usize = 7;
/// How long one measurement takes.
const TIME: Duration = Duration::from_millis(400);
/// How often the rows are written.
const SYNCS: u16 = 15;
/// So many rules are 10,000 rows: each peer has one for every protocol and direction of both endpoints, most of them
/// denials.
const RULES_OF_10_000_ROWS: usize = 904;

/// Asks for the last table alone.
const SYNC: &str = "sync";

fn main() -> Result<()> {
    // What else runs here would be measured as well.
    let _ = rustix::process::nice(-19);
    let asked: Vec<String> = std::env::args().skip(1).collect();
    match asked.first().map(String::as_str) {
        Some("arrangements") => arrangements::run(),
        Some("sockmap") => sockmap::run(),
        Some(SYNC) => syncs(),
        // What cargo says of itself begins with a dash.
        _ => datapath(),
    }
}

/// The programs of the trials; `cargo xtask bench` builds them.
fn trials() -> Result<Ebpf> {
    let path = std::env::var_os("SLUICE_TRIALS")
        .context("SLUICE_TRIALS names no object: `cargo xtask bench` builds it and says where it is")?;
    Ebpf::load_file(path).context("load the trials' programs")
}

fn datapath() -> Result<()> {
    let mut worlds = vec![World::build(0, Judge::Nobody, 0)?];
    worlds.push(World::build(1, Judge::Empty, 0)?);
    // For a look at a change of ours: what of it is worth telling is measured whole.
    let brief = std::env::args().any(|argument| argument == "brief");
    let judges = [Judge::NftRules, Judge::NftSet, Judge::Sluice];
    for judge in judges.into_iter().filter(|judge| !brief || *judge == Judge::Sluice) {
        for rules in RULES.into_iter().filter(|rules| !brief || *rules == RULES[0]) {
            let world = World::build(worlds.len(), judge, rules)?;
            worlds.push(world);
        }
    }
    let mut results = Results::new(&worlds);
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        for workload in Workload::ALL {
            // Each round begins with another world.
            for place in 0..worlds.len() {
                let at = (place + round) % worlds.len();
                let sample = measure(&worlds[at], workload, TIME)?;
                results.take(at, workload, sample);
            }
        }
    }
    println!("{}", table::machine());
    print!("{results}");
    print!("{}", programs(&worlds)?);
    if brief {
        return Ok(());
    }
    drop(worlds);
    syncs()
}

/// How long it takes to put rows in force, in worlds of their own.
fn syncs() -> Result<()> {
    let mut syncs = BTreeMap::new();
    for (number, rules) in [RULES[0], RULES_OF_10_000_ROWS, RULES[2]].into_iter().enumerate() {
        let mut world = World::build(number, Judge::Sluice, rules)?;
        // So that both slots are known, as they are in a process that has run for a while.
        (0..2).try_for_each(|_| world.apply(Change::default()).map(|_| ()))?;
        let rows = world.rows;
        for what in table::Sync::ALL {
            let mut times = Vec::new();
            for number in 1..=SYNCS {
                times.push(world.apply(what.change(number))?);
            }
            times.sort();
            syncs.insert((rows, what), times);
        }
    }
    print!("{}", table::syncs(&syncs));
    Ok(())
}

fn measure(world: &World, workload: Workload, time: Duration) -> Result<traffic::Sample> {
    run(workload, &world.client, &world.server, SERVER, time)
        .with_context(|| format!("{} with {} rules, {workload:?}", world.judge.name(), world.rules))
}

/// Run time and runs of every program of ours, by its number and name.
fn ran() -> BTreeMap<(u32, String), (Duration, u64)> {
    let ours = ["from_pod", "to_pod", "pass"];
    let all = loaded_programs().filter_map(Result::ok);
    let all = all.filter(|program| program.name_as_str().is_some_and(|name| ours.contains(&name)));
    all.map(|program| {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        ((program.id(), name), (program.run_time(), program.run_count()))
    })
    .collect()
}

/// What the kernel says that the programs take, while it is asked to measure them.
fn programs(worlds: &[World]) -> Result<Programs> {
    let _stats = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?;
    let mut programs = Programs::default();
    for world in worlds.iter().filter(|world| matches!(world.judge, Judge::Sluice | Judge::Empty)) {
        for workload in Workload::ALL {
            let before = ran();
            measure(world, workload, TIME)?;
            let mut sums: BTreeMap<String, (Duration, u64)> = BTreeMap::new();
            for (key, (time, runs)) in ran() {
                let (time_before, runs_before) = before.get(&key).copied().unwrap_or_default();
                let sum = sums.entry(key.1).or_default();
                *sum = (sum.0 + (time - time_before), sum.1 + (runs - runs_before));
            }
            programs.take(world.rules, workload, &sums);
        }
    }
    Ok(programs)
}
