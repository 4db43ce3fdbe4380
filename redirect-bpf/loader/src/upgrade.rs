//! What the loader of another ABI version left: its hooks judge until ours do, and its flows go on.
//!
//! A directory of pins per version, so that no maps mean two things. While both versions' hooks are on a device, the
//! stricter verdict wins. Of the version before, this knows where its map of addresses and its flow table are and what
//! is in them; of any other, that there are links to be removed. Called by `node`.

use crate::bpffs::{self, Pins};
use crate::error::SetupError;
use crate::maps::Maps;
use crate::plain::{Plain, V3FlowEntry};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData};
use sluice_bpf_abi::{ABI_VERSION, Address, FlowEntry, FlowKey, FlowState, REMOTE_NODE, map};
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The version whose maps are read here.
const KNOWN: u32 = 3;
/// A new entry alone: what our own hooks have written since says more.
const BPF_NOEXIST: u64 = 1;
/// The epoch of what is taken over: before any of ours, so that every flow is judged again by our rows.
const LONG_AGO: u64 = 0;

/// The directories of other versions.
#[derive(Debug)]
pub(crate) struct Before {
    versions: Vec<(u32, PathBuf)>,
}

/// A link of another version.
struct Old {
    device: u32,
    path: PathBuf,
}

impl Before {
    /// What is there.
    pub(crate) fn look(pins: &Pins) -> Result<Self, SetupError> {
        let mut versions = pins.versions()?;
        versions.retain(|(version, _)| *version != ABI_VERSION);
        Ok(Self { versions })
    }

    /// What older versions have left since: another agent may have been started by mistake.
    pub(crate) fn look_again(&mut self, pins: &Pins) -> Result<(), SetupError> {
        let older = pins.versions()?.into_iter().filter(|(version, _)| *version < ABI_VERSION);
        for found in older {
            if !self.versions.contains(&found) {
                self.versions.push(found);
            }
        }
        Ok(())
    }

    /// That no newer version has come since, which is taking the node over from us.
    pub(crate) fn is_ours(&self, pins: &Pins) -> Result<(), SetupError> {
        let newer = pins
            .versions()?
            .into_iter()
            .find(|found| found.0 > ABI_VERSION && !self.versions.contains(found));
        match newer {
            Some((version, path)) => Err(SetupError::Newer { version, path, ours: ABI_VERSION }),
            None => Ok(()),
        }
    }

    fn known(&self) -> Option<&Path> {
        self.versions.iter().find(|(version, _)| *version == KNOWN).map(|(_, path)| path.as_path())
    }

    /// The device that the version before knew an address by. Not to find a pod must not let it go.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<u32> {
        type Locals = HashMap<MapData, Address, u32>;
        let maps = self.known()?.join("maps");
        let locals: ArrayOfMaps<MapData, Locals> = open(&maps.join(map::LOCALS))?.try_into().ok()?;
        let epoch: aya::maps::Array<MapData, u64> = open(&maps.join(map::EPOCH))?.try_into().ok()?;
        let slot = (epoch.get(&0, 0).ok()? % 2) as u32;
        let address = sluice_policy::prefix::bits(address).to_be_bytes();
        locals.get(&slot, 0).ok()?.get(&address, 0).ok().filter(|owner| *owner < REMOTE_NODE)
    }

    /// Takes its flows over, those that ours do not have; how many. Without them an answer to what was asked before
    /// would be a new flow, and one that was cut would be a new one too.
    pub(crate) fn import(&self, maps: &mut Maps) -> usize {
        type Flows = HashMap<MapData, Plain<FlowKey>, Plain<V3FlowEntry>>;
        let Some(maps_of_old) = self.known().map(|path| path.join("maps")) else { return 0 };
        let flows: Option<Flows> = open(&maps_of_old.join(map::FLOWS)).and_then(|map| map.try_into().ok());
        let old = flows.iter().flat_map(|flows| flows.iter()).filter_map(Result::ok);
        let new = old.filter_map(|(key, entry)| Some((key.0, from_v3(entry.0)?)));
        new.filter(|(key, entry)| maps.flows.insert(Plain(*key), Plain(*entry), BPF_NOEXIST).is_ok()).count()
    }

    /// Takes the hooks off every device that ours judge, and every one if nobody is `missing` whom they may be judging
    /// for; then the rest. Tells what stays.
    pub(crate) fn retire(&mut self, ours: &HashSet<u32>, missing: bool) -> Vec<String> {
        let mut problems = Vec::new();
        self.versions.retain(|(version, directory)| {
            match retire(directory, ours, missing) {
                Ok(0) => return false,
                Ok(stay) => problems.push(format!(
                    "{stay} hooks of ABI version {version} stay, and judge: an endpoint that is missing may be behind them"
                )),
                Err(error) => problems.push(error.to_string()),
            }
            true
        });
        problems
    }
}

fn retire(directory: &Path, ours: &HashSet<u32>, missing: bool) -> Result<usize, SetupError> {
    let (go, stay): (Vec<Old>, Vec<Old>) =
        links(directory)?.into_iter().partition(|old| !missing || ours.contains(&old.device));
    go.iter().try_for_each(|old| bpffs::remove_link(&old.path))?;
    if stay.is_empty() {
        bpffs::remove_version(directory)?;
    }
    Ok(stay.len())
}

/// Every version has named them `<device>-<hook>`.
fn links(directory: &Path) -> Result<Vec<Old>, SetupError> {
    let links = directory.join("links");
    if !links.exists() {
        return Ok(Vec::new());
    }
    let device = |path: &Path| path.file_name()?.to_str()?.split_once('-')?.0.parse().ok();
    Ok(Pins::list(&links)?
        .into_iter()
        .filter_map(|path| Some(Old { device: device(&path)?, path }))
        .collect())
}

fn open(path: &Path) -> Option<Map> {
    Map::from_map_data(MapData::from_pin(path).ok()?).ok()
}

/// States, flags and lives have kept their numbers. A rule's number is a place in a list that is no more.
fn from_v3(old: V3FlowEntry) -> Option<FlowEntry> {
    let known = [FlowState::Direct, FlowState::Proxied, FlowState::Upstream, FlowState::Cut];
    known.iter().any(|state| *state as u8 == old.state).then_some(FlowEntry {
        epoch: LONG_AGO,
        seen: old.seen,
        state: old.state,
        flags: old.flags,
        life: old.life,
        ..FlowEntry::default()
    })
}
