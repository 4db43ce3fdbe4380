//! Typed handles of the object's maps.

use crate::error::SetupError;
use crate::plain::Plain;
use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray};
use sluice_bpf_abi::{
    Address, Config, EndpointValue, FlowEntry, FlowKey, Limits, Quota, RowKey, RowValue, ServiceKey, map,
};

pub(crate) type Classes = LpmTrie<MapData, Address, u32>;
pub(crate) type Rows = LpmTrie<MapData, Plain<RowKey>, Plain<RowValue>>;
pub(crate) type Endpoints = HashMap<MapData, u32, Plain<EndpointValue>>;
pub(crate) type Locals = HashMap<MapData, Address, u32>;
pub(crate) type Services = HashMap<MapData, Plain<ServiceKey>, u32>;

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
