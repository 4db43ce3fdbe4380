//! The walk over the flow table: counts each endpoint's flows, and removes what has been silent for too long.
//!
//! The programs count as well, but they do not see what times out or is evicted. Knows nothing of rows. Called by
//! `node`, every few seconds.

use crate::elements::{BATCH, Elements};
use crate::error::SetupError;
use crate::maps::Maps;
use crate::plain::Plain;
use aya::maps::IterableMap;
use sluice_bpf_abi::{FlowEntry, FlowKey, FlowKind, MAX_FLOWS, Quota, flow_flag, map};
use std::collections::{HashMap, HashSet};

/// Calls of one walk at most: the table may be walked once, and grow meanwhile.
const CALLS: usize = 2 * MAX_FLOWS as usize / BATCH;

/// What a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that are remembered.
    pub flows: usize,
    /// Flows that were removed.
    pub removed: usize,
}

/// Flows by device: ingress, egress.
type Counts = HashMap<u32, [i64; 2]>;

/// Counts and removes; `lives` are the devices of the endpoints there are.
pub(crate) fn sweep(maps: &mut Maps, lives: &HashSet<u32>) -> Result<Swept, SetupError> {
    let before = quotas(maps)?;
    let (mut swept, mut counts) = (Swept::default(), Counts::new());
    let mut calls = 0;
    let elements = Elements::<Plain<FlowKey>, Plain<FlowEntry>>::of(IterableMap::map(&maps.flows))
        .map_err(failed("walk", map::FLOWS))?;
    let walked = elements.walk(|keys, entries| {
        let now = now();
        for (Plain(key), Plain(entry)) in keys.iter().zip(entries) {
            // A flow that is over and begins anew this very moment is removed with it: it is judged again, as any.
            if lives.contains(&key.ifindex) && !entry.is_over(key.protocol, now) {
                swept.flows += 1;
                account(&mut counts, key, entry);
            } else if elements.remove_one(&Plain(*key)).is_ok() {
                swept.removed += 1;
            }
        }
        calls += 1;
        calls < CALLS
    });
    walked.map_err(failed("walk", map::FLOWS))?;
    write(maps, &before, &counts, lives)?;
    Ok(swept)
}

/// What `remember` of the programs counts: not the proxy's own, nor what the node opened.
fn account(counts: &mut Counts, key: &FlowKey, entry: &FlowEntry) {
    if key.kind == FlowKind::Upstream as u8 || entry.flags & flow_flag::HOST != 0 {
        return;
    }
    let egress = usize::from(key.kind == FlowKind::Egress as u8);
    counts.entry(key.ifindex).or_default()[egress] += 1;
}

fn write(maps: &mut Maps, before: &Quotas, counts: &Counts, lives: &HashSet<u32>) -> Result<(), SetupError> {
    for device in before.keys().filter(|device| !lives.contains(device)) {
        // Gone already is as good.
        let _ = maps.quotas.remove(device);
    }
    let after = quotas(maps)?;
    for device in lives {
        let was = before.get(device).copied().unwrap_or_default();
        let mut quota = after.get(device).copied().unwrap_or(was);
        let counted = counts.get(device).copied().unwrap_or_default();
        for direction in [0, 1] {
            // What began during the walk is counted though the walk may have seen it: too many by what a walk takes.
            let since = (quota.flows[direction] - was.flows[direction]).max(0);
            quota.flows[direction] = counted[direction] + since;
        }
        quota.counted = now();
        // Tokens that were taken since it was read come back with this: some milliseconds' worth.
        maps.quotas.insert(device, Plain(quota), 0).map_err(failed("write", map::QUOTAS))?;
    }
    Ok(())
}

type Quotas = HashMap<u32, Quota>;

fn quotas(maps: &Maps) -> Result<Quotas, SetupError> {
    let pairs = maps.quotas.iter().map(|pair| pair.map(|(device, quota)| (device, quota.0)));
    pairs.collect::<Result<_, _>>().map_err(failed("read", map::QUOTAS))
}

fn failed<E: std::fmt::Display>(what: &'static str, map: &'static str) -> impl FnOnce(E) -> SetupError {
    move |error| SetupError::Map { what, map, reason: error.to_string() }
}

/// The clock that flows are stamped by.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
