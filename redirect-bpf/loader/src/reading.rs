//! The kernel's counters and how full its maps are, read from the pins by whoever may: beside an agent that runs, or
//! without one.
//!
//! Reads only, takes no claim on the node, mounts nothing and loads nothing. Knows nothing of what the agent remembers.
//! Called by `sluice-proxy counters`.

use crate::bpffs::Pins;
use crate::counters::Counters;
use crate::elements::{BATCH, Elements};
use crate::error::SetupError;
use crate::fill::Fill;
use crate::maps::{Classes, Endpoints, Inner, Locals, Rows, Services};
use crate::plain::Plain;
use aya::Pod;
use aya::maps::{Array, ArrayOfMaps, HashMap, IterableMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use sluice_bpf_abi::{ABI_VERSION, FlowEntry, FlowKey, MAX_FLOWS, SLOTS, map};
use std::fmt::Display;
use std::path::Path;

/// Calls of one walk at most: a map may grow while it is walked. No map has more room than the flow table.
const CALLS: usize = 2 * MAX_FLOWS as usize / BATCH;
/// How often it is read again because another generation was put in force meanwhile. An agent that does so all the time
/// is read all the same, and the maps of two generations may stand beside each other.
const AGAIN: usize = 3;

/// What the kernel says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Other ABI versions that have something pinned: one that is being taken over from, or that takes over.
    pub others: Vec<u32>,
    /// How often a generation was put in force since the maps were made; 0: nothing is in force.
    pub epoch: u64,
    /// Packets by reason, since the maps were made.
    pub counters: Counters,
    /// How full the maps of what is in force are, and the flow table.
    pub fill: Vec<Fill>,
}

impl Reading {
    /// Reads what is pinned in the directory that `run` was given.
    ///
    /// # Errors
    /// If nothing is pinned there, if it is another ABI version's, or if this process may not read it.
    pub fn take(bpffs: &Path) -> Result<Self, SetupError> {
        let (pins, others) = find(bpffs)?;
        let counters: PerCpuArray<MapData, u64> = open(&pins, map::COUNTERS)?;
        let epochs: Array<MapData, u64> = open(&pins, map::EPOCH)?;
        let now = || epochs.get(&0, 0).map_err(failed(map::EPOCH));
        let (mut epoch, mut fill) = (now()?, Vec::new());
        for _ in 0..AGAIN {
            fill = generation(&pins, (epoch % u64::from(SLOTS)) as u32)?;
            let before = std::mem::replace(&mut epoch, now()?);
            if before == epoch {
                break;
            }
        }
        fill.push(flows(&pins)?);
        Ok(Self { others, epoch, counters: Counters::read(&counters)?, fill })
    }
}

/// How full the maps in a slot are.
fn generation(pins: &Pins, slot: u32) -> Result<Vec<Fill>, SetupError> {
    let rows: ArrayOfMaps<MapData, Rows> = open(pins, map::ROWS)?;
    let classes: ArrayOfMaps<MapData, Classes> = open(pins, map::CLASSES)?;
    let services: ArrayOfMaps<MapData, Services> = open(pins, map::SERVICES)?;
    let endpoints: ArrayOfMaps<MapData, Endpoints> = open(pins, map::ENDPOINTS)?;
    let locals: ArrayOfMaps<MapData, Locals> = open(pins, map::LOCALS)?;
    Ok(vec![
        inner(rows.get(&slot, 0))?,
        inner(classes.get(&slot, 0))?,
        inner(services.get(&slot, 0))?,
        inner(endpoints.get(&slot, 0))?,
        inner(locals.get(&slot, 0))?,
    ])
}

/// Our version's pins, and the other versions.
fn find(bpffs: &Path) -> Result<(Pins, Vec<u32>), SetupError> {
    let nothing = |found: String| SetupError::Config {
        what: format!("nothing is pinned at {}: {found}", bpffs.display()),
        remedy: "start `sluice-proxy run`, or give the --bpffs that it has; a bpffs that the agent mounted itself is \
                 seen in its own mount namespace alone: `nsenter --mount --target PID`",
    };
    if !bpffs.exists() {
        return Err(nothing("there is no such directory".to_owned()));
    }
    let pins = Pins::existing(bpffs)?.ok_or_else(|| nothing("it is on no bpffs".to_owned()))?;
    let mut versions: Vec<u32> = pins.versions()?.into_iter().map(|(version, _)| version).collect();
    versions.sort_unstable();
    let ours = versions.contains(&ABI_VERSION);
    versions.retain(|version| *version != ABI_VERSION);
    match (ours, versions.is_empty()) {
        (true, _) => Ok((pins, versions)),
        (false, true) => Err(nothing("it is empty".to_owned())),
        (false, false) => Err(SetupError::Config {
            what: format!(
                "what is pinned at {} is of BPF ABI {versions:?}, and this build reads {ABI_VERSION}",
                bpffs.display()
            ),
            remedy: "ask the sluice-proxy that runs there: `/proc/PID/exe counters`",
        }),
    }
}

fn open<T>(pins: &Pins, name: &'static str) -> Result<T, SetupError>
where
    T: TryFrom<Map>,
    T::Error: Display,
{
    let data = MapData::from_pin(pins.maps().join(name)).map_err(failed(name))?;
    Map::from_map_data(data).map_err(failed(name))?.try_into().map_err(failed(name))
}

fn inner<M: Inner>(there: Result<M, MapError>) -> Result<Fill, SetupError> {
    let used = match there {
        Ok(map) => count::<M::Key, M::Value>(M::NAME, map.data())?,
        // Nothing was put in force yet.
        Err(MapError::KeyNotFound) => 0,
        Err(error) => return Err(failed(M::NAME)(error)),
    };
    Ok(Fill { map: M::NAME, used, max: M::MOST })
}

fn flows(pins: &Pins) -> Result<Fill, SetupError> {
    type Flows = HashMap<MapData, Plain<FlowKey>, Plain<FlowEntry>>;
    let name = map::FLOWS;
    let flows: Flows = open(pins, name)?;
    let max = MapInfo::from_pin(pins.maps().join(name)).map_err(failed(name))?.max_entries();
    let used = count::<Plain<FlowKey>, Plain<FlowEntry>>(name, IterableMap::map(&flows))?;
    Ok(Fill { map: name, used, max })
}

/// The elements of a map. It marks none of them as used.
fn count<K: Pod + Default, V: Pod + Default>(name: &'static str, map: &MapData) -> Result<usize, SetupError> {
    let (mut found, mut calls) = (0, 0);
    let elements = Elements::<K, V>::of(map).map_err(failed(name))?;
    let walked = elements.walk(|keys, _| {
        found += keys.len();
        calls += 1;
        calls < CALLS
    });
    walked.map_err(failed(name))?;
    Ok(found)
}

fn failed<E: Display>(map: &'static str) -> impl FnOnce(E) -> SetupError {
    move |error| SetupError::Config {
        what: format!("cannot read map {map}: {error}"),
        remedy: "run as root; where the agent is being replaced, try again in a moment",
    }
}
