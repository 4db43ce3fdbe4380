//! The loader of ABI version 3, as far as the kernel sees it: its own programs (`abi3.bpf.o`, built from this
//! repository at f6d8ab3, without line information), its maps in its layout, its pins in its directory.
//!
//! Has no proxy. Called by the tests of upgrades.

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, ArrayOfMaps, HashMap, MapData};
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use sluice_policy::{Direction, Protocol, RowAction, RowEntry, Snapshot};
use sluice_tests::World;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

static OBJECT: &[u8] = aya::include_bytes_aligned!("abi3.bpf.o");
const MAPS: [&str; 13] = [
    "CONFIG",
    "EPOCH",
    "CLASSES",
    "ROWS",
    "ENDPOINTS",
    "LOCALS",
    "FLOWS",
    "COUNTERS",
    "SERVICES",
    "FRAGMENTS",
    "LIMITS",
    "QUOTAS",
    "EVENTS",
];
const HOOKS: [(&str, TcAttachType); 2] =
    [("from_pod", TcAttachType::Ingress), ("to_pod", TcAttachType::Egress)];
/// `BPF_F_NO_PREALLOC`, which tries must have.
const TRIE: u32 = 1;

type Classes = LpmTrie<MapData, [u8; 16], u32>;
type Rows = LpmTrie<MapData, [u8; 12], [u8; 8]>;
type Endpoints = HashMap<MapData, u32, [u8; 16]>;
type Locals = HashMap<MapData, [u8; 16], u32>;

/// The loader.
pub(crate) struct V3 {
    ebpf: Ebpf,
    directory: PathBuf,
    epoch: u64,
}

impl V3 {
    /// Loads the programs and pins the maps; `directory` is `…/v3`, unless it plays another version.
    pub(crate) fn open(directory: PathBuf) -> Result<Self> {
        for kind in ["maps", "links"] {
            std::fs::create_dir_all(directory.join(kind))?;
        }
        let mut loader = EbpfLoader::new();
        let paths: Vec<_> = MAPS.iter().map(|name| (*name, directory.join("maps").join(name))).collect();
        for (name, path) in &paths {
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader.load(OBJECT)?;
        for (name, _) in HOOKS {
            classifier(&mut ebpf, name)?.load()?;
        }
        Ok(Self { ebpf, directory, epoch: 0 })
    }

    /// Puts a snapshot in force on the routed pods of a node.
    pub(crate) fn put(&mut self, world: &World, node: &str, snapshot: &Snapshot) -> Result<()> {
        let (mut endpoints, mut locals) = (Endpoints::create(64, 0)?, Locals::create(64, 0)?);
        let mut devices = Vec::new();
        for endpoint in snapshot.endpoints.iter() {
            let pod = world.pod(&format!("{}/{}", endpoint.workload.namespace, endpoint.workload.pod));
            let index = index(world, node, &pod.veth)?;
            // The profile, the way, and no hardware address: the veths are routed.
            let mut value = [0; 16];
            value[..4].copy_from_slice(&endpoint.profile.0.to_ne_bytes());
            value[4..8].copy_from_slice(&index.to_ne_bytes());
            endpoints.insert(index, value, 0)?;
            for address in &endpoint.addresses {
                locals.insert(sluice_policy::prefix::bits(*address).to_be_bytes(), index, 0)?;
            }
            devices.push((index, pod.veth.clone()));
        }
        for address in [world.node(node).v4.into(), world.node(node).v6.into()] {
            locals.insert(sluice_policy::prefix::bits(address).to_be_bytes(), u32::MAX, 0)?;
        }
        self.write(snapshot, &endpoints, &locals)?;
        let links = self.directory.join("links");
        let ebpf = &mut self.ebpf;
        world
            .node(node)
            .netns
            .inside(|| devices.iter().try_for_each(|(index, veth)| attach(ebpf, &links, *index, veth)))?
    }

    fn write(&mut self, snapshot: &Snapshot, endpoints: &Endpoints, locals: &Locals) -> Result<()> {
        let (mut classes, mut rows) = (Classes::create(64, TRIE)?, Rows::create(4096, TRIE)?);
        for (prefix, class) in snapshot.addresses.iter() {
            let key = Key::new(u32::from(prefix.mapped_len()), Ipv6Addr::from(prefix.mapped_bits()).octets());
            classes.insert(&key, class.0, 0)?;
        }
        for entry in snapshot.rows() {
            let (bits, key, value) = row(&entry);
            rows.insert(&Key::new(bits, key), value, 0)?;
        }
        self.epoch += 1;
        let slot = (self.epoch % 2) as u32;
        self.swap("CLASSES", slot, &classes)?;
        self.swap("ROWS", slot, &rows)?;
        self.swap("ENDPOINTS", slot, endpoints)?;
        self.swap("LOCALS", slot, locals)?;
        let map = self.ebpf.map_mut("EPOCH").context("EPOCH")?;
        Array::<_, u64>::try_from(map)?.set(0, self.epoch, 0)?;
        Ok(())
    }

    fn swap<M: aya::maps::InnerMap>(&mut self, name: &str, slot: u32, inner: &M) -> Result<()> {
        let map = self.ebpf.map_mut(name).context("a map of the object")?;
        Ok(ArrayOfMaps::<_, M>::try_from(map)?.set(slot, inner, 0)?)
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).context("a program of the object")?.try_into()?)
}

fn attach(ebpf: &mut Ebpf, links: &Path, index: u32, device: &str) -> Result<()> {
    for (hook, side) in HOOKS {
        let path = links.join(format!("{index}-{hook}"));
        if path.exists() {
            continue;
        }
        let classifier = classifier(ebpf, hook)?;
        let id =
            classifier.attach_with_options(device, side, TcAttachOptions::TcxOrder(LinkOrder::first()))?;
        FdLink::try_from(classifier.take_link(id)?)?.pin(&path)?;
    }
    Ok(())
}

/// The number of a device of a node.
pub(crate) fn index(world: &World, node: &str, device: &str) -> Result<u32> {
    world.node(node).netns.inside(|| -> Result<u32> {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(name_to_index(&socket, device)?)
    })?
}

/// Bits, key and value of a row in version 3's layout.
fn row(entry: &RowEntry) -> (u32, [u8; 12], [u8; 8]) {
    let mut key = [0; 12];
    key[0..4].copy_from_slice(&entry.profile.0.to_ne_bytes());
    key[4..8].copy_from_slice(&entry.class.0.to_ne_bytes());
    key[8] = u8::from(entry.direction == Direction::Egress);
    key[9] = match entry.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
        Protocol::Icmp => 1,
        Protocol::Other => 255,
    };
    key[10..12].copy_from_slice(&entry.ports.port.to_be_bytes());
    let action = match entry.row.action {
        RowAction::Deny => 0,
        RowAction::Allow => 1,
        RowAction::ToProxy => 2,
    };
    (80 + u32::from(entry.ports.len), key, [action, 0, 0, 0, 0, 0, 0, 0])
}

/// What version 3 does with other versions once its own hooks are in force, step by step as its source has it.
pub(crate) fn retire_others(root: &Path) -> Result<()> {
    for entry in std::fs::read_dir(root)? {
        let directory = entry?.path();
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let version = name.strip_prefix('v').and_then(|number| number.parse::<u32>().ok());
        if version.is_none_or(|version| version == 3) {
            continue;
        }
        for kind in ["links", "maps"].map(|kind| directory.join(kind)) {
            if kind.exists() {
                for pin in std::fs::read_dir(&kind)? {
                    std::fs::remove_file(pin?.path())?;
                }
                std::fs::remove_dir(&kind)?;
            }
        }
        std::fs::remove_dir(&directory)?;
        ensure!(!directory.exists(), "{} is left", directory.display());
    }
    Ok(())
}
