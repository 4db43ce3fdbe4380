//! A corpus beside the project: where it is, what is said where it is not, how its cases are counted, and which of
//! them are judged otherwise on purpose.
//!
//! Knows nothing of what a case is. `cargo xtask test policy` collects the lines that [`Tally::print`] writes.

#![allow(dead_code, reason = "every test binary uses its part")]

use libtest_mimic::{Failed, Trial};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of the corpus: beside the project, or where `SLUICE_CORPUS` says.
pub(crate) fn folder(set: &str) -> PathBuf {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    std::env::var_os("SLUICE_CORPUS").map_or_else(beside, PathBuf::from).join(set)
}

/// One trial that stands for a corpus which is not there: shown as ignored, a failure with `SLUICE_REQUIRE_ALL=1`.
pub(crate) fn absent(set: &str, path: &Path, error: &dyn Display) -> Trial {
    let reason =
        format!("{} cannot be read ({error}); set SLUICE_CORPUS to the corpus folder", path.display());
    let required = std::env::var_os("SLUICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    eprintln!("{set}: {reason}");
    Trial::test(format!("{set} corpus unavailable"), move || Err(Failed::from(reason)))
        .with_ignored_flag(!required)
}

/// What became of the cases of a set.
pub(crate) struct Tally {
    set: &'static str,
    /// What is counted, as `requests`.
    unit: &'static str,
    passed: AtomicUsize,
    failed: AtomicUsize,
    /// Passed, as is ours on purpose and not the corpus's: by reason.
    otherwise: Mutex<BTreeMap<String, usize>>,
    /// Not judged: by reason.
    skipped: Mutex<BTreeMap<String, usize>>,
}

impl Tally {
    pub(crate) const fn new(set: &'static str, unit: &'static str) -> Self {
        Self {
            set,
            unit,
            passed: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            otherwise: Mutex::new(BTreeMap::new()),
            skipped: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn passed(&self, many: usize) {
        self.passed.fetch_add(many, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, many: usize) {
        self.failed.fetch_add(many, Ordering::Relaxed);
    }

    /// A case that is judged otherwise on purpose.
    pub(crate) fn otherwise(&self, reason: &str) {
        *self.otherwise.lock().expect("nobody panics with it").entry(reason.to_owned()).or_default() += 1;
    }

    /// Cases that are not judged.
    pub(crate) fn skipped(&self, many: usize, reason: &str) {
        *self.skipped.lock().expect("nobody panics with it").entry(reason.to_owned()).or_default() += many;
    }

    /// Counts an outcome, and hands it on.
    pub(crate) fn take(&self, outcome: Result<(), Failed>) -> Result<(), Failed> {
        match outcome {
            Ok(()) => self.passed(1),
            Err(_) => self.failed(1),
        }
        outcome
    }

    /// Says what was counted.
    pub(crate) fn print(&self) {
        let (otherwise, skipped) = (self.otherwise.lock(), self.skipped.lock());
        let (otherwise, skipped) = (otherwise.expect("nobody panics"), skipped.expect("nobody panics"));
        let (passed, failed) = (self.passed.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        report(self.set, self.unit, [passed, failed], &otherwise, &skipped);
    }
}

/// One line for a set, and one more for each reason. `deploy/xtask` reads them.
pub(crate) fn report(
    set: &str,
    unit: &str,
    [passed, failed]: [usize; 2],
    otherwise: &BTreeMap<String, usize>,
    skipped: &BTreeMap<String, usize>,
) {
    let sum = |reasons: &BTreeMap<String, usize>| reasons.values().sum::<usize>();
    let all = passed + failed + sum(otherwise) + sum(skipped);
    let (o, s) = (sum(otherwise), sum(skipped));
    println!(
        "corpus {set}: {all} {unit}, {passed} passed, {failed} failed, {o} otherwise on purpose, {s} skipped"
    );
    for (word, reasons) in [("otherwise", otherwise), ("skipped", skipped)] {
        for (reason, many) in reasons {
            println!("corpus {set}: {word} {many}: {reason}");
        }
    }
}

/// What is judged otherwise than the corpus says, on purpose: a checked-in file of lines `what = reason`, where `what`
/// is the key of one case, or a text that the keys of all those cases have.
pub(crate) struct OnPurpose(BTreeMap<String, String>);

impl OnPurpose {
    pub(crate) fn read(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("# "));
        let entry = |line: &str| {
            let (key, reason) = line.rsplit_once(" = ").unwrap_or_else(|| panic!("\"{line}\" has no reason"));
            (key.trim().to_owned(), reason.trim().to_owned())
        };
        Self(lines.map(entry).collect())
    }

    /// Counts an outcome by its key: what is listed must differ, and what is not must not.
    pub(crate) fn judge(&self, key: &str, outcome: Result<(), Failed>, tally: &Tally) -> Result<(), Failed> {
        match (self.0.iter().find(|(listed, _)| key.contains(*listed)), outcome) {
            (Some((_, reason)), Err(_)) => {
                tally.otherwise(reason);
                Ok(())
            }
            (Some((listed, _)), Ok(())) => {
                let reason =
                    format!("\"{listed}\" is listed as judged otherwise, and {key} is not: strike it");
                tally.take(Err(reason.into()))
            }
            (None, outcome) => tally.take(outcome),
        }
    }

    /// What is listed and in no case: a list that has outlived its corpus says so.
    pub(crate) fn unused(&self, keys: &[String]) -> Vec<String> {
        self.0.keys().filter(|listed| !keys.iter().any(|key| key.contains(*listed))).cloned().collect()
    }
}
