//! What control's log says of a node's word on its snapshot: what is new in it, and no more than a few lines.
//!
//! A node repeats what it lacks with each ack, and may lack a thousand endpoints. All of it is in the status; knows
//! nothing of that. Called by the loop.

use sluice_wire::pb;
use std::collections::HashSet;
use std::hash::Hash;

/// Lines of one kind for one ack. Who has more to look at looks at the status.
const LINES: usize = 8;

/// Says what is new since the node's last word.
pub(crate) fn say(node: &str, before: Option<&pb::Ack>, ack: &pb::Ack) {
    let generation = ack.generation;
    let refused = |ack: &pb::Ack| (ack.generation, ack.rejected.clone());
    if !ack.rejected.is_empty() && before.map(refused) != Some(refused(ack)) {
        tracing::error!(
            "node {node} refused generation {generation} and keeps what it had: {}",
            ack.rejected
        );
    }
    let missing = Lines::of(before.map_or(&[], |before| &before.missing), &ack.missing);
    for endpoint in &missing.first {
        tracing::warn!("node {node}: {} is not enforced: {}", endpoint.endpoint, endpoint.reason);
    }
    if missing.more > 0 {
        tracing::warn!("node {node}: {} more are not enforced, {} in all", missing.more, ack.missing.len());
    }
    let drift = Lines::of(before.map_or(&[], |before| &before.drift), &ack.drift);
    for drift in &drift.first {
        tracing::warn!("node {node} is not as it must be: {}: {}", drift.what, drift.stays);
    }
    if drift.more > 0 {
        tracing::warn!("node {node}: {} more things are not as they must be", drift.more);
    }
    tracing::debug!("node {node}: generation {generation}, {} endpoints attached", ack.attached.len());
}

/// What is new of a list.
struct Lines<'a, T> {
    first: Vec<&'a T>,
    more: usize,
}

impl<'a, T: Eq + Hash> Lines<'a, T> {
    fn of(before: &[T], now: &'a [T]) -> Self {
        let known: HashSet<&T> = before.iter().collect();
        let mut news = now.iter().filter(|item| !known.contains(item));
        let first = news.by_ref().take(LINES).collect();
        Self { first, more: news.count() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_said_and_a_few_of_it() {
        let lines = |before: &[u32], now: &[u32]| {
            let lines = Lines::of(before, now);
            (lines.first.into_iter().copied().collect::<Vec<_>>(), lines.more)
        };
        assert_eq!(lines(&[], &[]), (vec![], 0));
        assert_eq!(lines(&[], &[3, 1]), (vec![3, 1], 0));
        assert_eq!(lines(&[3, 1], &[3, 1]), (vec![], 0));
        assert_eq!(lines(&[3, 1, 2], &[2, 1, 4, 3]), (vec![4], 0), "in another order");
        assert_eq!(lines(&[3, 1, 2], &[2]), (vec![], 0));
        let many: Vec<u32> = (0..1_000).collect();
        assert_eq!(lines(&[], &many), ((0..8).collect(), 992));
        assert_eq!(lines(&many[..998], &many), (vec![998, 999], 0));
    }
}
