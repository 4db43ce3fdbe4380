//! Values that something said is compared with: regular expressions, and the tests of headers and parameters.
//!
//! Knows nothing of what is compared. `None` means that the value is in doubt; the problem is reported.

use crate::report::Report;
use sluice_crd::limits::MAX_REGEXES;
use sluice_crd::{HeaderMatch, HeaderMatchType};
use sluice_policy::{HeaderTest, Regex};

/// Compiles a regular expression, and counts it.
pub(crate) fn regex(value: &str, path: &str, report: &mut Report<'_>) -> Option<Regex> {
    report.regexes += 1;
    if report.regexes > MAX_REGEXES {
        let reason = format!("more than {MAX_REGEXES} regular expressions in one policy");
        report.error(path, reason, "write several policies, or Exact and PathPrefix");
        return None;
    }
    match Regex::new(value) {
        Ok(regex) => Some(regex),
        Err(reason) => {
            // The parser draws its message over several lines; what is wrong stands on the last.
            let reason = match (reason.split_once("regex parse error:"), reason.rsplit_once("error: ")) {
                (Some((head, _)), Some((_, what))) => format!("{head}{what}"),
                _ => reason.lines().map(str::trim).collect::<Vec<_>>().join(" "),
            };
            report.error(path, reason, "write it as RE2 does: no look-around, no back-references");
            None
        }
    }
}

/// What the value of a header or of a query parameter must be.
pub(crate) fn test(given: &HeaderMatch, path: &str, report: &mut Report<'_>) -> Option<HeaderTest> {
    let at = format!("{path}.value");
    match (given.kind, &given.value) {
        (HeaderMatchType::Exact, Some(value)) => Some(HeaderTest::Exact(value.as_str().into())),
        (HeaderMatchType::RegularExpression, Some(value)) => regex(value, &at, report).map(HeaderTest::Regex),
        (HeaderMatchType::Present, None) => Some(HeaderTest::Present),
        (HeaderMatchType::Absent, None) => Some(HeaderTest::Absent),
        (HeaderMatchType::Present | HeaderMatchType::Absent, Some(_)) => {
            report.error(&at, "Present and Absent take no value", "remove it, or write type: Exact");
            None
        }
        (HeaderMatchType::Exact | HeaderMatchType::RegularExpression, None) => {
            report.error(&at, "there is no value to compare with", "write `value`, or type: Present");
            None
        }
    }
}
