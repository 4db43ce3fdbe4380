//! The kernel's lookup in the rows of a snapshot.
//!
//! Used by the tests of rows and of the second opinion. Knows nothing of rules.

use sluice_policy::{ClassId, Direction, PortPrefix, ProfileId, Protocol, Row, RowAction, RowEntry};
use std::collections::HashMap;

/// The rows of a node, by what the kernel looks them up by.
pub(crate) type Keys = HashMap<(ProfileId, Direction, ClassId, Protocol), Vec<(PortPrefix, Row)>>;

/// The rows by what the kernel looks them up by.
pub(crate) fn keys(rows: impl Iterator<Item = RowEntry>) -> Keys {
    let mut keys = Keys::new();
    for entry in rows {
        let key = (entry.profile, entry.direction, entry.class, entry.protocol);
        keys.entry(key).or_default().push((entry.ports, entry.row));
    }
    keys
}

/// What the kernel does: the longest prefix of the port; where no row is, it refuses.
pub(crate) fn kernel(keys: &Keys, key: (ProfileId, Direction, ClassId, Protocol), port: u16) -> Row {
    let matches =
        |prefix: &PortPrefix| prefix.len == 0 || (port ^ prefix.port) >> (16 - u16::from(prefix.len)) == 0;
    let rows = keys.get(&key).into_iter().flatten().filter(|(prefix, _)| matches(prefix));
    rows.max_by_key(|(prefix, _)| prefix.len).map_or(
        Row { action: RowAction::Deny, fail_open: false, audit: false, reject: false, by: None },
        |(_, row)| *row,
    )
}

/// What the kernel does with what a process of the node opens: by the class of its address, else by that of nobody in
/// particular; where no row is, it lets it through.
#[allow(dead_code, reason = "a test of its own")]
pub(crate) fn kernel_of_host(
    rows: &Keys,
    (profile, class, protocol): (ProfileId, ClassId, Protocol),
    port: u16,
) -> Row {
    let key = |class| (profile, Direction::Ingress, class, protocol);
    let found = [class, ClassId::MISSING].into_iter().map(key).find(|key| rows.contains_key(key));
    let passes = Row { action: RowAction::Allow, fail_open: false, audit: false, reject: false, by: None };
    found.map_or(passes, |found| kernel(rows, found, port))
}
