//! The tests of a binary by what they are about, as one table: their names are `area: what is tested`.
//!
//! Knows nothing of how tests are run.

use crate::count::{Count, Said};
use std::collections::BTreeMap;
use std::fmt;

/// The counts of each area of a binary.
#[derive(Debug, Default)]
pub(crate) struct Areas(BTreeMap<String, Count>);

impl Areas {
    /// Takes a line, if it is a test's that names its area.
    pub(crate) fn take(&mut self, said: &Said<'_>) {
        let Said::Test { name, end } = said else { return };
        let Some((area, _)) = name.split_once(": ") else { return };
        *self.0.entry(area.to_owned()).or_default() += match end.split([',', ' ']).next() {
            Some("ok") => Count::PASSED,
            Some("ignored") => Count::SKIPPED,
            _ => Count::FAILED,
        };
    }

    /// Whether no test named one.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Areas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            self.0.keys().map(|area| area.chars().count()).max().unwrap_or_default().max("area".len());
        write!(f, "  {:width$}  passed  failed  skipped", "area")?;
        for (area, Count { passed, failed, skipped }) in &self.0 {
            write!(f, "\n  {area:width$}  {passed:>6}  {failed:>6}  {skipped:>7}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Areas;
    use crate::count::understand;

    #[test]
    fn each_area_has_a_row_with_its_counts() {
        let mut areas = Areas::default();
        for line in [
            "test l4: tcp ... ok",
            "test l4: udp: both ways ... FAILED",
            "test stress: many ... ignored, needs root",
            "test of no area ... ok",
        ] {
            areas.take(&understand(line));
        }
        let table = areas.to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines,
            [
                "  area    passed  failed  skipped",
                "  l4           1       1        0",
                "  stress       0       0        1",
            ]
        );
    }
}
