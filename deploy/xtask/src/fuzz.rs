//! Fuzzes what reads strangers' bytes: builds the targets of `proxy/fuzz` once, runs two at a time, says how far each came.
//!
//! libFuzzer without cargo-fuzz: the coverage that it needs is rustc's own, on stable, and no crate of the proxy is
//! `unsafe`, so that no sanitizer would find more. What is found is kept beside the seeds, where the tests run it. Knows
//! nothing of what is fuzzed.

use crate::place::Place;
use crate::step;
use anyhow::{Context as _, bail};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// The crate, from the root.
const CRATE: &str = "proxy/fuzz";
/// How many run at once.
const AT_ONCE: usize = 2;
/// What each of them may use of memory, in MB, before that is taken for a finding.
const MEMORY_MB: u32 = 1024;
/// How long one input may take, in seconds, before that is one.
const SLOW: u32 = 10;
/// The coverage that libFuzzer reads, as cargo-fuzz asks for it.
const COVERAGE: [&str; 8] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=4",
];

/// How far a target came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Came {
    target: String,
    executions: u64,
    edges: u64,
    inputs: u64,
    crash: Option<String>,
}

/// Fuzzes each target for so long. Says whether nothing was found.
pub(crate) fn run(place: &Place, each: Duration) -> anyhow::Result<bool> {
    let targets = targets(place)?;
    let binaries = build(place)?;
    let seconds = each.as_secs();
    let left = Mutex::new(targets.clone());
    let came = Mutex::new(Vec::new());
    step::step(&format!("{} targets for {seconds} s each, {AT_ONCE} at a time", targets.len()), |_| {
        std::thread::scope(|scope| {
            let worker = || -> anyhow::Result<()> {
                loop {
                    let next = left.lock().map_err(|_| anyhow::anyhow!("another target panicked"))?.pop();
                    let Some(target) = next else { return Ok(()) };
                    let found = fuzz(place, &binaries, &target, seconds)?;
                    came.lock().map_err(|_| anyhow::anyhow!("another target panicked"))?.push(found);
                }
            };
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a target panicked")))
        })
    })?;
    let mut came = came.into_inner().unwrap_or_default();
    came.sort_by(|a, b| a.target.cmp(&b.target));
    println!("\n| target | executions | edges covered | inputs kept | found |\n|---|---|---|---|---|");
    for Came { target, executions, edges, inputs, crash } in &came {
        println!(
            "| {target} | {executions} | {edges} | {inputs} | {} |",
            if crash.is_some() { "**yes**" } else { "nothing" }
        );
    }
    for (target, crash) in came.iter().filter_map(|came| Some((&came.target, came.crash.as_ref()?))) {
        println!(
            "\n{target}: {crash}\nwhat found it is in {CRATE}/seeds/{target}: `cargo test -p sluice-proxy fuzzing` fails until it is cured"
        );
    }
    Ok(came.iter().all(|came| came.crash.is_none()))
}

/// Its targets: each has seeds.
fn targets(place: &Place) -> anyhow::Result<Vec<String>> {
    let folder = place.root.join(CRATE).join("seeds");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds them, apart from everything else: all of it is built to be watched.
fn build(place: &Place) -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let target = place.cache.join("fuzz/target");
    let mut cargo = place.cargo(&["build", "--release", "--locked", "--bins", "--target", &triple]);
    cargo
        .current_dir(place.root.join(CRATE))
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    step::command("building the targets (the first time takes minutes)", &mut cargo)?;
    Ok(target.join(triple).join("release"))
}

fn fuzz(place: &Place, binaries: &std::path::Path, target: &str, seconds: u64) -> anyhow::Result<Came> {
    let seeds = place.root.join(CRATE).join("seeds").join(target);
    // What was found interesting before is where the next run begins.
    let corpus = place.cache.join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    let mut command = Command::new(binaries.join(target));
    command.current_dir(&seeds).arg(&corpus).arg(&seeds).args([
        format!("-max_total_time={seconds}"),
        format!("-rss_limit_mb={MEMORY_MB}"),
        format!("-timeout={SLOW}"),
        format!("-artifact_prefix={}/", seeds.display()),
        "-print_final_stats=1".to_owned(),
    ]);
    let (lines, good) = step::stream(&mut command, |_| {})?;
    Ok(Came { target: target.to_owned(), crash: (!good).then(|| telling(&lines)), ..read(&lines) })
}

/// What libFuzzer says of how far it came.
fn read(lines: &[String]) -> Came {
    let mut came = Came::default();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |name: &str| {
            let place = words.iter().position(|word| *word == name)?;
            words.get(place + 1)?.split('/').next()?.parse().ok()
        };
        came.edges = after("cov:").unwrap_or(came.edges);
        came.inputs = after("corp:").unwrap_or(came.inputs);
        came.executions = after("stat::number_of_executed_units:").unwrap_or(came.executions);
    }
    came
}

/// The first lines of a finding.
fn telling(lines: &[String]) -> String {
    let from =
        lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
    let told = lines.iter().skip(from.unwrap_or(lines.len().saturating_sub(5))).take(4);
    told.map(String::as_str).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let lines = [
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#4096\tpulse  cov: 99 ft: 180 corp: 21/400b lim: 4 exec/s: 2048 rss: 31Mb",
            "stat::number_of_executed_units: 8193",
        ]
        .map(str::to_owned);
        let came = read(&lines);
        assert_eq!((came.executions, came.edges, came.inputs), (8193, 99, 21));
        let lines = ["x", "thread 'main' panicked at a.rs:1:1:", "left: 1"].map(str::to_owned);
        assert!(telling(&lines).starts_with("thread 'main'"));
    }
}
