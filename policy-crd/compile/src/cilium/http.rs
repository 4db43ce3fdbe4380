//! `rules` of an item of `toPorts` into conditions on a request.
//!
//! Knows nothing of peers or ports.

use crate::report::Report;
use sluice_crd::{CiliumL7Rules, CiliumPortRule, Part};
use sluice_policy::Conditions;
use std::sync::Arc;

/// Lowers `rules`. `None`: in doubt, and told. `Some(None)`: L3/L4 alone.
#[allow(clippy::option_option, reason = "a rule without conditions is not a rule in doubt")]
pub(super) fn lower(item: &CiliumPortRule, report: &mut Report<'_>) -> Option<Option<Arc<Conditions>>> {
    let path = format!("{}.rules", item.path);
    let rules = match &item.rules {
        Part::Absent => return Some(None),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(rules) => rules,
    };
    let CiliumL7Rules { http, dns, kafka, l7proto, l7 } = rules;
    let given = [
        ("http", !http.is_absent()),
        ("dns", !dns.is_absent()),
        ("kafka", !kafka.is_absent()),
        ("l7proto", !l7proto.is_absent()),
        ("l7", !l7.is_absent()),
    ];
    let mut doubt = false;
    for (field, _) in given.iter().filter(|(_, given)| *given) {
        report.not_built(&format!("{path}.{field}"));
        doubt = true;
    }
    (!doubt).then_some(None)
}
