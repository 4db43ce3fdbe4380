//! The pinned maps of a node as anybody with the rights may open them: to take from them and to put into them what
//! the loader does not know of.
//!
//! Knows the sizes of keys and values, and not what is in them. Called by tests of what is lost, full or changed.

use crate::rig::Rig;
use anyhow::{Result, ensure};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use sluice_redirect::ABI_VERSION;
use std::path::PathBuf;

/// The bytes of a flow's key and of its entry.
type Flows = HashMap<MapData, [u8; 44], [u8; 48]>;
/// A device, and what it has used.
pub(crate) type Quotas = HashMap<MapData, u32, [u8; 104]>;

/// Where a map of a node is pinned.
pub(crate) fn path(rig: &Rig, node: &str, name: &str) -> PathBuf {
    rig.config(node).bpffs.join(format!("v{ABI_VERSION}/maps")).join(name)
}

/// A hash map of a node.
pub(crate) fn hash<K: Pod, V: Pod>(rig: &Rig, node: &str, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(Map::from_map_data(MapData::from_pin(path(rig, node, name))?)?.try_into()?)
}

/// Makes `n1` forget every flow; how many there were.
///
/// A flood does not do that for certain: the table keeps what has been used more than once for longer than what was
/// never used again.
pub(crate) fn forget_flows(rig: &Rig) -> Result<usize> {
    let mut flows: Flows = hash(rig, "n1", "FLOWS")?;
    let keys: Vec<[u8; 44]> = flows.keys().collect::<Result<_, MapError>>()?;
    let gone = keys.iter().filter(|key| flows.remove(key).is_ok()).count();
    ensure!(flows.keys().count() == 0, "flows came back while they were removed");
    Ok(gone)
}
