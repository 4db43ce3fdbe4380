//! Typed handles of the object's maps.

use crate::error::SetupError;
use crate::plain::{Leading, Plain};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, ArrayOfMaps, HashMap, InnerMap, IterableMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use sluice_bpf_abi::{
    Address, Config, EndpointValue, FlowEntry, FlowKey, Limits, MAX_CLASSES, MAX_ENDPOINTS, MAX_LOCALS,
    MAX_ROWS, MAX_SERVICES, Quota, RowKey, RowValue, ServiceKey, map,
};
use std::hash::Hash;

pub(crate) type Classes = LpmTrie<MapData, Address, u32>;
pub(crate) type Rows = LpmTrie<MapData, Plain<RowKey>, Plain<RowValue>>;
pub(crate) type Endpoints = HashMap<MapData, u32, Plain<EndpointValue>>;
pub(crate) type Locals = HashMap<MapData, Address, u32>;
pub(crate) type Services = HashMap<MapData, Plain<ServiceKey>, u32>;

/// What the kernel's tries need to be told (`BPF_F_NO_PREALLOC`).
const TRIE_FLAGS: u32 = 1;

/// One of the five kinds of maps that a generation has.
pub(crate) trait Inner: InnerMap + Sized + Send + Sync {
    /// The outer map's name.
    const NAME: &'static str;
    /// How many elements there may be.
    const MOST: u32;
    type Key: Pod + Default + Eq + Hash;
    type Value: Pod + Default + Eq;

    /// A new one.
    fn make(room: u32) -> Result<Self, MapError>;
    /// It as the kernel's.
    fn data(&self) -> &MapData;
    /// The kernel's number of what is in a slot.
    fn there(maps: &Maps, slot: u32) -> Option<u32>;
}

macro_rules! inner {
    ($name:ident, $field:ident, $map:ident, $most:ident, $key:ty, $value:ty, $flags:expr) => {
        impl Inner for $name {
            const NAME: &'static str = map::$map;
            const MOST: u32 = $most;
            type Key = $key;
            type Value = $value;

            fn make(room: u32) -> Result<Self, MapError> {
                Self::create(room, $flags)
            }

            fn data(&self) -> &MapData {
                IterableMap::map(self)
            }

            fn there(maps: &Maps, slot: u32) -> Option<u32> {
                Some(maps.$field.get(&slot, 0).ok()?.data().info().ok()?.id())
            }
        }
    };
}

inner!(Rows, rows, ROWS, MAX_ROWS, Plain<Leading<RowKey>>, Plain<RowValue>, TRIE_FLAGS);
inner!(Classes, classes, CLASSES, MAX_CLASSES, Plain<Leading<Address>>, u32, TRIE_FLAGS);
inner!(Services, services, SERVICES, MAX_SERVICES, Plain<ServiceKey>, u32, 0);
inner!(Endpoints, endpoints, ENDPOINTS, MAX_ENDPOINTS, u32, Plain<EndpointValue>, 0);
inner!(Locals, locals, LOCALS, MAX_LOCALS, Address, u32, 0);

/// Every map that the loader reads or writes.
pub(crate) struct Maps {
    pub(crate) config: Array<MapData, Plain<Config>>,
    pub(crate) epoch: Array<MapData, u64>,
    pub(crate) classes: ArrayOfMaps<MapData, Classes>,
    pub(crate) rows: ArrayOfMaps<MapData, Rows>,
    pub(crate) endpoints: ArrayOfMaps<MapData, Endpoints>,
    pub(crate) locals: ArrayOfMaps<MapData, Locals>,
    pub(crate) services: ArrayOfMaps<MapData, Services>,
    pub(crate) flows: HashMap<MapData, Plain<FlowKey>, Plain<FlowEntry>>,
    pub(crate) limits: Array<MapData, Plain<Limits>>,
    pub(crate) quotas: HashMap<MapData, u32, Plain<Quota>>,
    pub(crate) counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Takes them out of the loaded object; a size that differs from the ABI's is an error.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, SetupError> {
        Ok(Self {
            config: take(ebpf, map::CONFIG)?,
            epoch: take(ebpf, map::EPOCH)?,
            classes: take(ebpf, map::CLASSES)?,
            rows: take(ebpf, map::ROWS)?,
            endpoints: take(ebpf, map::ENDPOINTS)?,
            locals: take(ebpf, map::LOCALS)?,
            services: take(ebpf, map::SERVICES)?,
            flows: take(ebpf, map::FLOWS)?,
            limits: take(ebpf, map::LIMITS)?,
            quotas: take(ebpf, map::QUOTAS)?,
            counters: take(ebpf, map::COUNTERS)?,
        })
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, SetupError>
where
    T: TryFrom<Map>,
    T::Error: std::fmt::Display,
{
    let map = ebpf.take_map(name).ok_or(SetupError::Object { what: "map", name: name.to_owned() })?;
    T::try_from(map).map_err(|error| SetupError::Map { what: "use", map: name, reason: error.to_string() })
}
