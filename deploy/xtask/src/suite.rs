//! Runs the tests, part by part, and counts.
//!
//! One line a test binary, every skip with its reason, everything that a failed binary said, and one closing line.
//! Knows nothing of what is tested. Called by `test`.

use crate::areas::Areas;
use crate::corpora::Corpora;
use crate::count::{Count, Counter, Said, understand};
use crate::parts::{Part, TestBinary, Workspace};
use crate::place::Place;
use crate::setup::{self, Machine};
use crate::{apiserver, bpf, interop, lint, step};
use anyhow::bail;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

/// The binary whose tests name what they are about.
const BY_AREA: &str = "tests/datapath.rs";
/// Set by continuous integration: what cannot run is a failure.
const REQUIRE_ALL: &str = "SLUICE_REQUIRE_ALL";
/// Asks a test that has a short form and a long one for the long one.
const LONG: &str = "SLUICE_LONG";

/// Runs a part, or everything. Says whether nothing failed.
pub(crate) fn test(place: &Place, part: Option<Part>, long: bool) -> anyhow::Result<bool> {
    let mut suite = Suite {
        place,
        require_all: require_all(),
        long,
        count: Count::default(),
        corpora: Corpora::default(),
        areas: Areas::default(),
    };
    if let Machine::Lacking(what) = setup::machine(place)? {
        step::say(&format!("some tests cannot run here: {what}"));
    }
    if matches!(part, None | Some(Part::Control))
        && let Some(lacking) = apiserver::ready(place)?
    {
        step::say(&format!("some tests cannot run here: {lacking}"));
    }
    if matches!(part, None | Some(Part::Interop))
        && let Some(lacking) = interop::ready(place)?
    {
        step::say(&format!("some tests cannot run here: {lacking}"));
    }
    let workspace = workspace(place)?;
    if part.is_none() {
        for (name, check) in lint::CHECKS {
            suite.check(name, || check(place).map(|()| None));
        }
    }
    if part.is_none() || part == Some(Part::Datapath) {
        suite.check("the eBPF object is what its source gives", || bpf::run(place, true));
    }
    match build(place, &workspace, part) {
        Ok(binaries) => {
            for part in part.map_or_else(|| Part::ALL.to_vec(), Part::whole) {
                suite.part(&workspace, &binaries, part)?;
            }
            if part.is_none() {
                let mut doc = place.cargo(&["test", "--locked", "--workspace", "--doc", "--no-fail-fast"]);
                suite.run("documentation", "", &mut doc)?;
            }
        }
        Err(error) => suite.count += failed("build", &error),
    }
    if !suite.areas.is_empty() {
        println!("\n{}", suite.areas);
    }
    if !suite.corpora.is_empty() {
        println!("\n{}", suite.corpora);
    }
    println!("\n{}", suite.count);
    Ok(suite.count.failed == 0)
}

fn failed(name: &str, error: &anyhow::Error) -> Count {
    println!("{error:#}\n  ✗ {name}");
    Count::FAILED
}

fn require_all() -> bool {
    let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    set(REQUIRE_ALL, "1") || set("CI", "true")
}

/// What the workspace has.
pub(crate) fn workspace(place: &Place) -> anyhow::Result<Workspace> {
    let mut command = place.cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Workspace::read(&String::from_utf8_lossy(&output.stdout))
}

/// Builds the tests of a part, or all, and every binary that they start.
fn build(place: &Place, workspace: &Workspace, part: Option<Part>) -> anyhow::Result<Vec<TestBinary>> {
    let name = "building the tests (the first time takes minutes)";
    step::step(name, |watch| {
        // Both at once: chosen apart, cargo would build much of what they share twice.
        let format = "--message-format=json-render-diagnostics";
        let mut command = place.cargo(&["build", "--locked", "--bins", "--tests", format]);
        command.args(workspace.selection(part));
        let mut binaries = Vec::new();
        let (lines, good) = step::stream(&mut command, |line| {
            watch.line(name, line);
            binaries.extend(workspace.test_binary(line));
        })?;
        if !good {
            bail!("{}\n`{}` failed", step::telling(&lines), step::shown(&command));
        }
        binaries.sort_by(|a, b| (&a.package, &a.source).cmp(&(&b.package, &b.source)));
        Ok(binaries)
    })
}

/// Builds what the demo starts.
pub(crate) fn build_demo(place: &Place) -> anyhow::Result<()> {
    // As `build` chooses, so that the demo and the tests share what is built.
    let mut command = place.cargo(&["build", "--locked", "--workspace", "--bins"]);
    step::command("building (the first time takes minutes)", &mut command)
}

struct Suite<'p> {
    place: &'p Place,
    require_all: bool,
    long: bool,
    count: Count,
    corpora: Corpora,
    areas: Areas,
}

impl Suite<'_> {
    /// Counts a check as a test. One that could not be made says why.
    fn check(&mut self, name: &str, check: impl FnOnce() -> anyhow::Result<Option<String>>) {
        self.count += match check() {
            Ok(None) => Count::PASSED,
            Ok(Some(reason)) => self.skip(name, &reason),
            Err(error) => failed(name, &error),
        };
    }

    fn skip(&self, name: &str, reason: &str) -> Count {
        if self.require_all {
            println!("  ✗ {name}: {reason}; {REQUIRE_ALL}=1 makes that a failure");
            return Count::FAILED;
        }
        println!("  – skipped: {name}: {reason}");
        Count::SKIPPED
    }

    fn part(&mut self, workspace: &Workspace, binaries: &[TestBinary], part: Part) -> anyhow::Result<()> {
        let start = Instant::now();
        step::say(&format!("test {}", part.name()));
        let before = self.count;
        for binary in binaries.iter().filter(|binary| binary.part == part) {
            // As cargo would run it.
            let mut command = self.place.command(&binary.executable);
            command.current_dir(&binary.home).env("CARGO_MANIFEST_DIR", &binary.home);
            self.run(&binary.package, &binary.source, &mut command)?;
        }
        if part == Part::Node {
            self.demo(workspace);
        }
        let own = Count {
            passed: self.count.passed - before.passed,
            failed: self.count.failed - before.failed,
            skipped: self.count.skipped - before.skipped,
        };
        println!("  {}: {own} ({:.1} s)", part.name(), start.elapsed().as_secs_f32());
        Ok(())
    }

    /// Runs one binary, or a cargo that runs several.
    fn run(&mut self, package: &str, source: &str, command: &mut Command) -> anyhow::Result<()> {
        if self.require_all {
            command.env(REQUIRE_ALL, "1");
        }
        if self.long {
            command.env(LONG, "1");
        }
        let mut counter = Counter::default();
        let mut progress = Progress::new(package);
        if !source.is_empty() {
            counter.take(&Said::Began(source));
        }
        let mut begun = Vec::new();
        let (corpora, areas) = (&mut self.corpora, &mut self.areas);
        let (lines, good) = step::stream(command, |line| {
            corpora.take(line);
            let said = understand(line);
            progress.take(&said);
            if source == BY_AREA {
                areas.take(&said);
            }
            begun.push(line.to_owned());
            if let Some(ended) = counter.take(&said) {
                progress.ended(&ended, &begun);
            }
            if matches!(said, Said::Began(_) | Said::Result(_)) {
                begun.clear();
            }
        })?;
        progress.clear();
        let failed = counter.count.failed;
        if let Some(ended) = counter.end(good) {
            progress.ended(&ended, &begun);
        } else if !good && failed == 0 {
            println!("{}\n  ✗ `{}` failed", step::telling(&lines), step::shown(command));
        }
        self.count += counter.count;
        Ok(())
    }

    /// The demo is a test as well: its exit code says whether every line was as expected.
    fn demo(&mut self, workspace: &Workspace) {
        if !workspace.has_binary("sluice-demo") {
            self.check("demo", || bail!("the workspace has no binary sluice-demo"));
        } else if setup::is_root() {
            let mut command = self.place.command(self.place.binary("sluice-demo"));
            self.check("demo", || step::command("sluice-demo", &mut command).map(|()| None));
        } else {
            self.check("demo", || Ok(Some("needs root, to create network namespaces".to_owned())));
        }
    }
}

/// Shows that something happens, where somebody watches.
struct Progress<'p> {
    package: &'p str,
    start: Instant,
    spoken: Instant,
    tests: usize,
    drawn: bool,
}

/// In a log, where nothing can be drawn over, a long binary says this often how far it is.
const SPEAK: Duration = Duration::from_secs(20);

impl<'p> Progress<'p> {
    fn new(package: &'p str) -> Self {
        let now = Instant::now();
        Self { package, start: now, spoken: now, tests: 0, drawn: false }
    }

    fn take(&mut self, said: &Said<'_>) {
        match said {
            Said::Began(_) => (self.start, self.tests) = (Instant::now(), 0),
            Said::Test { name, end } => {
                self.tests += 1;
                if let Some(reason) = end.strip_prefix("ignored") {
                    self.clear();
                    let reason = reason.trim_start_matches([',', ' ']);
                    println!("  – skipped: {name}{}{reason}", if reason.is_empty() { "" } else { ": " });
                }
                if step::watched() {
                    print!("\r  {} tests, {name:.80}\x1b[K", self.tests);
                    let _ = std::io::stdout().flush();
                    self.drawn = true;
                } else if self.spoken.elapsed() > SPEAK {
                    println!("  … {} tests so far ({:.0} s)", self.tests, self.start.elapsed().as_secs_f32());
                    self.spoken = Instant::now();
                }
            }
            Said::Result(_) | Said::Other => {}
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            print!("\r\x1b[K");
        }
    }

    /// One line for a binary; all that it said where it failed.
    fn ended(&mut self, (name, count): &(String, Count), said: &[String]) {
        self.clear();
        if count.failed > 0 {
            println!("{}", said.join("\n"));
        }
        if *count != Count::default() {
            let mark = if count.failed > 0 { '✗' } else { '✓' };
            println!(
                "  {mark} {} {name}: {count} ({:.1} s)",
                self.package,
                self.start.elapsed().as_secs_f32()
            );
        }
    }
}
