//! What the kernel does with a connection, before anything is said over it.
//!
//! Source: DESIGN §5.6: "The kernel's row is to-proxy as soon as any reachable rule of any tier or layer has an L7
//! condition", and §5.5: "A flow that is proxied only because of an audited policy fails open".

use super::tiers::{self, Action};
use super::verdict::{Said, Truth, View, Voice, enforced, side};
use serde_json::Value;

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Allow {
        /// An audited policy would refuse it.
        audit: bool,
    },
    Deny,
    ToProxy {
        /// Because of audited policies alone.
        fail_open: bool,
    },
}

/// The row of one end of a connection.
pub(crate) fn row(view: &View<'_>) -> Row {
    let view = &View { said: &Said::Nothing, ..*view };
    let passes = |active: &dyn Fn(&Value) -> bool| side(view, active).allowed != Truth::No;
    if !passes(&enforced) {
        return Row::Deny;
    }
    if governed(view, &enforced) {
        return Row::ToProxy { fail_open: false };
    }
    // "For each audited policy alone and for all together."
    let (mut audit, mut fail_open) = (false, false);
    let mut consider = |active: &dyn Fn(&Value) -> bool| match passes(active) {
        true => fail_open |= governed(view, active),
        false => audit = true,
    };
    for one in view.cluster.policies.iter().filter(|policy| !enforced(policy)) {
        consider(&|policy| enforced(policy) || std::ptr::eq(policy, one));
    }
    consider(&|_| true);
    if fail_open { Row::ToProxy { fail_open } } else { Row::Allow { audit } }
}

/// Whether a rule that has an L7 condition can be reached.
fn governed(view: &View<'_>, active: &dyn Fn(&Value) -> bool) -> bool {
    let admin = tiers::rules(view, "Admin", active);
    match first(&admin) {
        Some((_, Truth::Maybe)) => return true,
        Some((Action::Accept | Action::Deny, _)) => return false,
        Some((Action::Pass, _)) | None => {}
    }
    if view.from_host {
        return false;
    }
    let voice = Voice::hear(view, active);
    let baseline = || matches!(first(&tiers::rules(view, "Baseline", active)), Some((_, Truth::Maybe)));
    let asks =
        |isolates: bool, rules: &[super::verdict::Ruling]| isolates && rules.iter().any(|rule| rule.asks);
    asks(true, &voice.denies)
        || asks(voice.k.isolates, &voice.k.allows)
        || (!voice.k.isolates && baseline())
        || asks(voice.l.isolates, &voice.l.allows)
}

/// The first rule of a tier that matches, or may.
fn first(rules: &[(Action, Truth)]) -> Option<(Action, Truth)> {
    rules.iter().copied().find(|(_, matched)| *matched != Truth::No)
}
