//! Migrating in tests: the result as objects, and whether the original gives the same verdicts.
//!
//! Knows nothing of where policies and questions come from.

#![allow(dead_code, reason = "every test binary uses its part")]

pub(crate) mod around;

use around::Question;
use serde_json::{Value, json};
use sluice_compile::Rollout;
use sluice_compile::migrate::{LossKind, Manifest, Migrated, Written, migrate};
use sluice_compile::query::{Cluster, Port, Query};
use sluice_crd::{Loaded, Severity, load_value};
use sluice_policy::{Decision, Facts, Reason, Verdict};

/// A manifest as the API server would take it.
pub(crate) fn value(manifest: &Manifest) -> Value {
    without_nulls(match &manifest.object {
        Written::NetworkPolicy(policy) => serde_json::to_value(policy).unwrap(),
        Written::L7NetworkPolicy { namespace, name, spec } => json!({
            "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec,
        }),
    })
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let given = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(given.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

pub(crate) fn is_ciliums(object: &Value) -> bool {
    object["apiVersion"].as_str().is_some_and(|api| api.starts_with("cilium.io/"))
}

/// A cluster, and the same after migrating.
pub(crate) struct Pair {
    pub(crate) before: Cluster,
    pub(crate) after: Cluster,
    pub(crate) migrated: Migrated,
    pub(crate) result: Vec<Value>,
    /// Errors in the result: there shall be none.
    pub(crate) errors: Vec<String>,
}

impl Pair {
    pub(crate) fn new(objects: &[Value]) -> Self {
        let before = load_value(objects);
        let migrated = migrate(&before.objects);
        let result: Vec<Value> = migrated.manifests.iter().map(value).collect();
        let stays = objects.iter().filter(|object| !is_ciliums(object));
        let after = load_value(&stays.chain(&result).cloned().collect::<Vec<_>>());
        let own = load_value(&result);
        let lowered = Cluster::new(&own.objects, Rollout::AsIfEnforced);
        let problems = own.problems.iter().chain(&lowered.problems);
        let errors = problems.filter(|problem| problem.severity == Severity::Error);
        let errors = errors.map(ToString::to_string).collect();
        let cluster = |loaded: &Loaded| Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
        Self { before: cluster(&before), after: cluster(&after), errors, result, migrated }
    }

    /// Whether something was lost in one of these ways.
    pub(crate) fn lost(&self, kinds: &[LossKind]) -> bool {
        self.migrated.losses.iter().any(|loss| kinds.contains(&loss.kind))
    }

    /// The verdict before and after. A difference that no loss speaks of is an error.
    pub(crate) fn ask(&self, query: &Query) -> Result<[Decision; 2], String> {
        let of = |cluster: &Cluster| cluster.ask(query).unwrap_or_else(|error| panic!("{query:?}: {error}"));
        self.compare(&of(&self.before), &of(&self.after), query)
    }

    /// The same for a question that may come over TLS; and whether a rule of the original lets it through.
    pub(crate) fn judge(&self, question: &Question) -> Result<([Decision; 2], bool), String> {
        let Question { query, tls } = question;
        let of = |cluster: &Cluster| match (tls, &query.port) {
            (Some(name), Port::Number(port)) => {
                let address = |text: &str| -> std::net::IpAddr { text.parse().unwrap() };
                let (from, to) = (address(&query.from), address(&query.to));
                let facts = Facts::Tls(name.as_deref());
                cluster.snapshot().judge(from, to, query.protocol, *port, facts)
            }
            _ => cluster.ask(query).unwrap_or_else(|error| panic!("{query:?}: {error}")),
        };
        let before = of(&self.before);
        let granted = [&before.egress, &before.ingress].iter().any(|side| side.reason == Reason::RuleMatched);
        let decisions =
            self.compare(&before, &of(&self.after), query).map_err(|error| format!("{tls:?} {error}"))?;
        Ok((decisions, granted && decisions[0] == Decision::Allow))
    }

    fn compare(&self, was: &Verdict, is: &Verdict, query: &Query) -> Result<[Decision; 2], String> {
        let of = |verdict: &Verdict| [verdict.egress.decision, verdict.ingress.decision];
        let (was, is) = (of(was), of(is));
        for (was, is) in was.into_iter().zip(is) {
            let told = match (was, is) {
                (Decision::Allow, Decision::Deny) => self.lost(&[LossKind::Narrowed, LossKind::Dropped]),
                // A deny that is left out lets through, too.
                (Decision::Deny, Decision::Allow) => self.lost(&[LossKind::Widened, LossKind::Dropped]),
                _ => true,
            };
            if !told {
                let losses: Vec<String> = self
                    .migrated
                    .losses
                    .iter()
                    .map(|loss| format!("{} {}", loss.kind, loss.problem))
                    .collect();
                return Err(format!(
                    "{was:?} became {is:?}: {query:?}\nlosses: {losses:#?}\nresult: {:#?}",
                    self.result
                ));
            }
        }
        let whole = |sides: [Decision; 2]| {
            if sides.contains(&Decision::Deny) { Decision::Deny } else { Decision::Allow }
        };
        Ok([whole(was), whole(is)])
    }
}
