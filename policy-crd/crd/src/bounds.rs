//! The upper bounds of the generated schemas, for objects that no API server has checked.
//!
//! Whatever a schema bounds is bounded here, in the same numbers and units, for both are made of the same types: a
//! field cannot be forgotten. Lower bounds are told where a value is lowered, with what an empty list would have
//! meant. Knows nothing of what a field means. Called by the
//! reader.

use crate::definitions;
use crate::problem::Severity;
use crate::read::Reader;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Most places told of one object; beyond it nothing of the object is taken.
const MAX_EXCESSES: usize = 64;

/// The bounds of one place and of all below it.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    /// Items of a list.
    items: Option<usize>,
    /// Characters of a text: code points, as the API server counts.
    length: Option<usize>,
    /// Entries of a map.
    entries: Option<usize>,
    /// The least and the greatest number.
    range: (Option<i64>, Option<i64>),
    fields: BTreeMap<String, Bounds>,
    /// Of each item, or of each entry.
    each: Option<Box<Bounds>>,
}

/// Where a value is beyond its bound, and how.
struct Excess {
    path: String,
    reason: String,
}

/// The bounds of an `L7NetworkPolicy`'s `spec`.
pub(crate) static L7: LazyLock<Bounds> = LazyLock::new(|| Bounds::of(&definitions::l7_spec()));
/// The bounds of a `ClusterL7NetworkPolicy`'s `spec`.
pub(crate) static CLUSTER_L7: LazyLock<Bounds> =
    LazyLock::new(|| Bounds::of(&definitions::cluster_l7_spec()));

impl Bounds {
    fn of(schema: &Value) -> Self {
        let count = |field: &str| schema[field].as_u64().and_then(|bound| usize::try_from(bound).ok());
        let fields = schema["properties"].as_object().into_iter().flatten();
        let each = ["items", "additionalProperties"].into_iter().find_map(|f| schema.get(f));
        Self {
            items: count("maxItems"),
            length: count("maxLength"),
            entries: count("maxProperties"),
            range: (schema["minimum"].as_i64(), schema["maximum"].as_i64()),
            fields: fields.map(|(name, inner)| (name.clone(), Self::of(inner))).collect(),
            each: each.map(|inner| Box::new(Self::of(inner))),
        }
    }

    /// Where `value`, which stands at `path`, is beyond them; `None`: in too many places to tell.
    fn exceeded(&self, value: &Value, path: &str) -> Option<Vec<Excess>> {
        let mut found = Vec::new();
        self.look(value, path, &mut found);
        (found.len() < MAX_EXCESSES).then_some(found)
    }

    fn look(&self, value: &Value, path: &str, found: &mut Vec<Excess>) {
        if found.len() >= MAX_EXCESSES {
            return;
        }
        let over = |len: usize, most: Option<usize>, what: &str| {
            let most = most.filter(|most| len > *most)?;
            Some(format!("{len} {what}, at most {most} are taken"))
        };
        let reason = match value {
            Value::Array(items) => over(items.len(), self.items, "items"),
            Value::Object(entries) => over(entries.len(), self.entries, "entries"),
            Value::String(text) => over(text.chars().count(), self.length, "characters"),
            Value::Number(number) => self.out_of_range(number),
            Value::Null | Value::Bool(_) => None,
        };
        if let Some(reason) = reason {
            found.push(Excess { path: path.to_owned(), reason });
            return;
        }
        match value {
            Value::Array(items) => {
                let Some(each) = &self.each else { return };
                for (index, item) in items.iter().enumerate() {
                    each.look(item, &format!("{path}[{index}]"), found);
                }
            }
            Value::Object(entries) => {
                for (name, inner) in entries {
                    if let Some(bounds) = self.fields.get(name).or(self.each.as_deref()) {
                        bounds.look(inner, &format!("{path}.{name}"), found);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn out_of_range(&self, number: &serde_json::Number) -> Option<String> {
        // Bounds are 32-bit numbers, and a float holds those.
        #[allow(clippy::cast_precision_loss, reason = "no bound has more than 32 bits")]
        let beyond = |bound: i64, below: bool| {
            number.as_f64().is_none_or(|n| if below { n < bound as f64 } else { n > bound as f64 })
        };
        let (least, most) = self.range;
        if let Some(least) = least.filter(|least| beyond(*least, true)) {
            return Some(format!("{number} is less than {least}"));
        }
        let most = most.filter(|most| beyond(*most, false))?;
        Some(format!("{number} is greater than {most}"))
    }
}

impl Reader<'_> {
    /// Takes what is beyond the bounds of the schema as if it could not be read.
    pub(crate) fn hold(&mut self, bounds: &Bounds, value: &Map<String, Value>) {
        let Some(spec) = value.get("spec") else { return };
        let Some(excesses) = bounds.exceeded(spec, "spec") else {
            let reason = "too much in it is beyond its bounds; nothing of it is taken";
            self.report(Severity::Error, "spec", reason, "hold to the bounds of the CRD's schema");
            self.beyond = vec!["spec".to_owned()];
            return;
        };
        for Excess { path, reason } in excesses {
            let reason = format!("{reason}; nothing is granted by it, and a deny is not limited by it");
            self.report(Severity::Error, &path, reason, "write less, or several rules or policies");
            self.beyond.push(path);
        }
    }
}
