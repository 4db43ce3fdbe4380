//! What the tests of corpora say of their cases, as one table.
//!
//! A test says `corpus SET: 68 requests, 49 passed, 0 failed, 0 otherwise on purpose, 19 skipped`, and for each reason
//! `corpus SET: skipped 19: REASON` (policy-crd/compile/tests/common/corpus.rs). Knows nothing of how tests are run.

use std::fmt;

/// The counts of a set, in the order of their columns.
const COLUMNS: [&str; 4] = ["passed", "failed", "otherwise on purpose", "skipped"];

/// One set.
#[derive(Debug, PartialEq, Eq)]
struct Set {
    name: String,
    /// How many of what, as `68 requests`.
    cases: String,
    counts: [u64; COLUMNS.len()],
    /// As `19 skipped: REASON`.
    reasons: Vec<String>,
}

/// Every set that was told of, in order.
#[derive(Debug, Default)]
pub(crate) struct Corpora(Vec<Set>);

impl Corpora {
    /// Takes a line, if it tells of a set.
    pub(crate) fn take(&mut self, line: &str) {
        let told = line.trim().strip_prefix("corpus ").and_then(|rest| rest.split_once(": "));
        let Some((name, rest)) = told else { return };
        let reason = ["otherwise", "skipped"].iter().find_map(|word| {
            let (many, reason) = rest.strip_prefix(word)?.trim_start().split_once(": ")?;
            Some(format!("{many} {word}: {reason}"))
        });
        match (reason, self.0.iter_mut().find(|set| set.name == name)) {
            (Some(reason), Some(set)) => set.reasons.push(reason),
            (None, None) => self.0.extend(summary(name, rest)),
            _ => {}
        }
    }

    /// Whether none was told of.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `68 requests, 49 passed, 0 failed, 0 otherwise on purpose, 19 skipped`
fn summary(name: &str, text: &str) -> Option<Set> {
    let (cases, numbers) = text.split_once(", ")?;
    let number = |word: &str| {
        let part = numbers.split(", ").find_map(|part| part.strip_suffix(word))?;
        part.trim().parse().ok()
    };
    let mut counts = [0; COLUMNS.len()];
    for (count, column) in counts.iter_mut().zip(COLUMNS) {
        *count = number(column)?;
    }
    Some(Set { name: name.to_owned(), cases: cases.to_owned(), counts, reasons: Vec::new() })
}

impl fmt::Display for Corpora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Set) -> &str| self.0.iter().map(|set| text(set).chars().count()).max();
        let name = width(|set| &set.name).unwrap_or_default().max("corpus".len());
        let cases = width(|set| &set.cases).unwrap_or_default().max("cases".len());
        write!(f, "  {:name$}  {:cases$}", "corpus", "cases")?;
        for column in COLUMNS {
            write!(f, "  {column}")?;
        }
        for set in &self.0 {
            write!(f, "\n  {:name$}  {:cases$}", set.name, set.cases)?;
            for (count, column) in set.counts.iter().zip(COLUMNS) {
                write!(f, "  {count:>width$}", width = column.len())?;
            }
            for reason in &set.reasons {
                write!(f, "\n    {reason}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_set_is_a_row_with_its_reasons() {
        let mut corpora = Corpora::default();
        for line in [
            "test a ... ok",
            "corpus http: 68 requests, 49 passed, 0 failed, 2 otherwise on purpose, 17 skipped",
            "corpus http: otherwise 2: stricter",
            "corpus http: skipped 17: no manifest: of another test",
            "corpus cells (of pairs)/x: 7 cases (9 pairs), 7 passed, 0 failed, 0 otherwise on purpose, 0 skipped",
            "corpus other: what is this",
            "corpus unknown: skipped 1: of no set",
        ] {
            corpora.take(line);
        }
        let table = corpora.to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines,
            [
                "  corpus              cases              passed  failed  otherwise on purpose  skipped",
                "  http                68 requests            49       0                     2       17",
                "    2 otherwise: stricter",
                "    17 skipped: no manifest: of another test",
                "  cells (of pairs)/x  7 cases (9 pairs)       7       0                     0        0",
            ]
        );
    }

    #[test]
    fn without_corpora_there_is_no_table() {
        let mut corpora = Corpora::default();
        corpora.take("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert!(corpora.is_empty());
    }
}
