//! Names for results: the original's, made unique and short enough.
//!
//! Knows nothing of what is named.

use sluice_crd::limits::MAX_OBJECT_NAME;
use std::collections::HashSet;
use std::sync::Arc;

/// The names that are taken, by kind and namespace.
#[derive(Default)]
pub(super) struct Names(HashSet<(&'static str, Arc<str>, String)>);

impl Names {
    pub(super) fn take(&mut self, kind: &'static str, namespace: &Arc<str>, name: &str) -> bool {
        self.0.insert((kind, namespace.clone(), name.to_owned()))
    }

    /// The name, or the first of `name-2`, `name-3` … that is free.
    pub(super) fn unique(&mut self, kind: &'static str, namespace: &Arc<str>, name: &str) -> String {
        let numbered = (2_u64..).map(|number| shortened(name, &format!("-{number}")));
        let mut candidates = std::iter::once(shortened(name, "")).chain(numbered);
        candidates.find(|name| self.take(kind, namespace, name)).unwrap_or_default()
    }
}

/// The name and its ending; of one that is too long the beginning, and what tells it from others with the same.
fn shortened(name: &str, ending: &str) -> String {
    if name.len() + ending.len() <= MAX_OBJECT_NAME {
        return format!("{name}{ending}");
    }
    let ending = format!("-{:08x}{ending}", fnv(name));
    let head: String = name.chars().take(MAX_OBJECT_NAME - ending.len()).collect();
    format!("{}{ending}", head.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()))
}

/// FNV-1a: the same number for the same name, always. Nobody is kept out by it.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit() {
        let mut names = Names::default();
        let namespace: Arc<str> = "a".into();
        let mut name = |name: &str| names.unique("L7NetworkPolicy", &namespace, name);
        assert_eq!([name("x"), name("x"), name("x-2"), name("x")], ["x", "x-2", "x-2-2", "x-3"]);
        let long = format!("{}.{}", "x".repeat(250), "y".repeat(20));
        let (one, two) = (name(&long), name(&long));
        assert!(one.len() <= MAX_OBJECT_NAME && two.len() <= MAX_OBJECT_NAME && one != two, "{one} {two}");
    }
}
