//! Reads what `cargo test` says, from libtest and from libtest-mimic alike, and counts.
//!
//! A binary that began and never said its result crashed: that is a failure. Knows nothing of how tests are run.

use std::fmt;
use std::ops::AddAssign;

/// What became of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Ran and held.
    pub(crate) passed: u64,
    /// Ran and did not, or could not be built or crashed.
    pub(crate) failed: u64,
    /// Could not run here, or not wanted.
    pub(crate) skipped: u64,
}

impl Count {
    /// One that held.
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    /// One that did not.
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    /// One that could not run.
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What a line of `cargo test` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said<'l> {
    /// A test binary begins.
    Began(&'l str),
    /// A test ended.
    Test {
        /// Its name.
        name: &'l str,
        /// Its end, as `ok`, `FAILED` or `ignored, reason`.
        end: &'l str,
    },
    /// A test binary's result.
    Result(Count),
    /// Something else.
    Other,
}

/// Understands one line.
pub(crate) fn understand(line: &str) -> Said<'_> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix("Running ") {
        // `Running tests/edges.rs (/…/edges-0123)`, `Running unittests src/lib.rs (/…)`
        return Said::Began(rest.rsplit_once(" (").map_or(rest, |(name, _)| name));
    }
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Said::Began(name);
    }
    if let Some(rest) = line.strip_prefix("test result: ") {
        return result(rest).map_or(Said::Other, Said::Result);
    }
    if let Some((name, end)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
        return Said::Test { name: name.trim(), end };
    }
    Said::Other
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
fn result(text: &str) -> Option<Count> {
    let (_, numbers) = text.split_once(". ")?;
    let number = |what: &str| {
        let part = numbers.split(';').find_map(|part| part.trim().strip_suffix(what))?;
        part.trim().parse().ok()
    };
    Some(Count { passed: number(" passed")?, failed: number(" failed")?, skipped: number(" ignored")? })
}

/// Counts the binaries of one `cargo test`.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    /// So far.
    pub(crate) count: Count,
    running: Option<String>,
}

impl Counter {
    /// Takes what a line said. Returns a binary that ended with its count.
    pub(crate) fn take(&mut self, said: &Said<'_>) -> Option<(String, Count)> {
        match said {
            Said::Began(name) => {
                let crashed = self.running.replace((*name).to_owned());
                self.crash(crashed)
            }
            Said::Result(count) => {
                self.count += *count;
                Some((self.running.take().unwrap_or_default(), *count))
            }
            Said::Test { .. } | Said::Other => None,
        }
    }

    /// Takes the end of the whole. A failure of cargo for which no test stands counts as one.
    pub(crate) fn end(&mut self, succeeded: bool) -> Option<(String, Count)> {
        let crashed = self.running.take();
        let ended = self.crash(crashed);
        if !succeeded && self.count.failed == 0 {
            self.count += Count::FAILED;
        }
        ended
    }

    fn crash(&mut self, crashed: Option<String>) -> Option<(String, Count)> {
        let crashed = crashed?;
        self.count += Count::FAILED;
        Some((format!("{crashed} (crashed)"), Count::FAILED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str, succeeded: bool) -> Count {
        let mut counter = Counter::default();
        for line in text.lines() {
            counter.take(&understand(line));
        }
        counter.end(succeeded);
        counter.count
    }

    const LIBTEST: &str = "     Running unittests src/lib.rs (target/debug/deps/a-1)

running 3 tests
test a ... ok
test b ... FAILED
test c ... ignored, needs root

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s
";

    #[test]
    fn results_of_all_binaries_are_summed() {
        let mimic = "     Running tests/world.rs (target/debug/deps/world-1)
running 2 tests
test one ... ok
test two ... ignored
test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.20s
   Doc-tests sluice_policy
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(count(&format!("{LIBTEST}{mimic}"), false), Count { passed: 2, failed: 1, skipped: 2 });
    }

    #[test]
    fn what_crashes_fails() {
        let crash = "     Running tests/a.rs (x)\nrunning 1 test\nerror: test failed (signal: 11, SIGSEGV)\n";
        assert_eq!(count(crash, false), Count::FAILED);
        assert_eq!(count(&format!("{crash}{LIBTEST}"), false), Count { passed: 1, failed: 2, skipped: 1 });
        assert_eq!(count("error[E0308]: mismatched types", false), Count::FAILED);
        assert_eq!(count("", true), Count::default());
    }

    #[test]
    fn a_test_says_its_name_and_end() {
        assert_eq!(
            understand("test c ... ignored, needs root"),
            Said::Test { name: "c", end: "ignored, needs root" }
        );
        assert_eq!(understand("test result: odd"), Said::Other);
        assert_eq!(understand("   Compiling a v0.1.0"), Said::Other);
    }

    #[test]
    fn the_closing_line_is_what_readers_look_for() {
        assert_eq!(Count { passed: 3, failed: 1, skipped: 2 }.to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
