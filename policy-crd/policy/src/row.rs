//! What the kernel does with a connection: the same walk, with the request not yet known.
//!
//! Knows nothing of maps or of how rows are folded; [`fold`](crate::fold) does.

use crate::asked::{Asked, Effect, Taking};
use crate::fold::{Row, RowAction};
use crate::index::{Probe, SideIndex, audited};
use crate::observe::Nobody;
use crate::port::Protocol;
use crate::profile::{LayerKind, Side, TierAction};
use crate::stages::Rules;
use crate::verdict::{Connection, Decision, Facts};

/// What a tier comes to before a request is known.
enum Reached {
    /// A rule with a condition may decide.
    Conditional,
    /// A rule without one does.
    By(TierAction),
    /// No rule matches.
    Nothing,
}

/// The first rule of a tier that reaches the connection.
fn reached(tier: Rules<'_>, asked: Asked<'_>) -> Reached {
    match tier.first_reaching(asked, |_| true) {
        Some((rule, _)) if rule.conditions.is_some() => Reached::Conditional,
        Some((_, Effect::Tier(action))) => Reached::By(action),
        _ => Reached::Nothing,
    }
}

impl Side {
    /// What the kernel does with this connection.
    #[must_use]
    pub fn row(&self, connection: &Connection) -> Row {
        self.row_by(None, connection)
    }

    /// The same, through the side's index.
    pub(crate) fn row_by(&self, index: Option<&SideIndex>, connection: &Connection) -> Row {
        let facts = Facts::Connection;
        let probe = index.map(|index| Probe::new(index, connection, facts));
        let asked = |taking| Asked { connection, facts, taking, probe: probe.as_ref() };
        let passes = |taking| self.walk(asked(taking), &mut Nobody).decision == Decision::Allow;
        let row = |action| Row { action, fail_open: false, audit: false, reject: false, by: None };
        let walked = self.walk(asked(Taking::Enforcing), &mut Nobody);
        if walked.decision == Decision::Deny {
            let reject = self.rejects(walked.by, asked(Taking::Enforcing));
            return Row { reject, by: walked.by, ..row(RowAction::Deny) };
        }
        if self.governed_by_request(asked(Taking::Enforcing)) {
            return row(RowAction::ToProxy);
        }
        let own;
        let audited = match index {
            Some(index) => &index.audited[..],
            None => {
                own = audited(self);
                &own[..]
            }
        };
        let ways = || {
            let alone = audited.iter().map(|policy| Taking::EnforcingAnd(policy));
            alone.chain((!audited.is_empty()).then_some(Taking::All))
        };
        if ways().any(|way| passes(way) && self.governed_by_request(asked(way))) {
            return Row { fail_open: true, ..row(RowAction::ToProxy) };
        }
        Row { audit: ways().any(|way| !passes(way)), by: walked.by, ..row(RowAction::Allow) }
    }

    /// Whether any rule that can still decide this connection has a condition on the request.
    fn governed_by_request(&self, asked: Asked<'_>) -> bool {
        if asked.connection.protocol != Protocol::Tcp {
            return false;
        }
        match reached(Rules::Admin(self), asked) {
            Reached::Conditional => return true,
            Reached::By(TierAction::Accept | TierAction::Deny) => return false,
            Reached::By(TierAction::Pass) | Reached::Nothing => {}
        }
        if asked.connection.from_host {
            return false;
        }
        let conditional =
            |rules: Rules<'_>| rules.first_reaching(asked, |rule| rule.conditions.is_some()).is_some();
        let isolated = |kind| self.isolated_by(kind, asked).is_some();
        conditional(Rules::Deny(self))
            || (!isolated(LayerKind::K)
                && matches!(reached(Rules::Baseline(self), asked), Reached::Conditional))
            || LayerKind::ALL.into_iter().any(|kind| isolated(kind) && conditional(Rules::Layer(self, kind)))
    }
}
