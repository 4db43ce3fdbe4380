//! How a node begins: made anew, over what an earlier process has pinned, or taken from one that runs.
//!
//! Knows nothing of snapshots. Called by the agent.

use super::Node;
use super::config::{self, NodeConfig};
use crate::attach;
use crate::bpffs::Pins;
use crate::claims::Claim;
use crate::crash;
use crate::error::SetupError;
use crate::families;
use crate::handed;
use crate::helper::Helper;
use crate::maps::Maps;
use crate::netns;
use crate::slots::Slots;
use crate::upgrade::Before;
use aya::maps::MapInfo;
use aya::{Ebpf, EbpfLoader};
use sluice_bpf_abi::{map, program};
use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The object is part of the binary; `cargo xtask build-bpf` makes it.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!("../sluice.bpf.o");

impl Node {
    /// Sets the node up, or takes over what an earlier process pinned. The node's network namespace is that
    /// of this thread.
    ///
    /// # Errors
    /// Says which thing cannot be had, and what to do.
    pub fn open(config: NodeConfig) -> Result<Self, SetupError> {
        Self::begin(config, Helper::create)
    }

    /// Takes over from a process that runs: it gave us its proxy's network namespace and listeners, and goes on until
    /// it is dropped, not [released](Self::release). Until then both have their programs on the helper, and a packet
    /// passes both: ours first. No connection is refused and none is cut.
    ///
    /// # Errors
    /// If what was given is not this node's, or as [`open`](Self::open). The process that runs is as it was.
    pub fn adopt(
        config: NodeConfig,
        proxy_netns: OwnedFd,
        listeners: &[TcpListener],
    ) -> Result<Self, SetupError> {
        config::check(&config)?;
        handed::check(listeners, config.listen_port)?;
        Self::begin(config, |name, netns| Helper::adopt(name, netns, proxy_netns))
    }

    fn begin(
        mut config: NodeConfig,
        helper: impl FnOnce(&str, BorrowedFd<'_>) -> Result<Helper, SetupError>,
    ) -> Result<Self, SetupError> {
        config::check(&config)?;
        families::tell();
        config.hooks = config.hooks.decide();
        let netns =
            netns::current().map_err(SetupError::cannot("open /proc/thread-self/ns/net", "mount /proc"))?;
        let pins = Pins::open(&config.bpffs, config.roll_back)?;
        let _claim = Claim::shared(pins.root())?;
        crash::point("make the directories");
        let before = Before::look(&pins)?;
        let mut ebpf = load(&pins, config.flows)?;
        let maps = Maps::take(&mut ebpf)?;
        let pinned = pinned(&pins)?;
        crash::point("load the programs");
        let helper = helper(&config.name, netns.as_fd())?;
        crash::point("set the helper up");
        let (book, epoch, hooked, claims) = (Arc::default(), None, Vec::new(), HashSet::new());
        let (fill, swept) = (Vec::new(), 0);
        let mut node = Self {
            config,
            netns,
            pins,
            before,
            ebpf,
            maps,
            helper,
            book,
            pinned,
            epoch,
            hooked,
            slots: Slots::default(),
            claims,
            owners: HashMap::new(),
            fill,
            swept,
            _claim,
        };
        node.attach_helper()?;
        crash::point("attach the helper's hooks");
        node.limit()?;
        node.configure(node.helper.outer.index)?;
        crash::point("write the configuration");
        node.take_over()?;
        Ok(node)
    }

    /// The proxy's listeners, on `127.0.0.1` and `::1` of its namespace, where no pod reaches them but
    /// through the hooks. The local address of what they accept is the original destination. Where the kernel has no
    /// IPv6 there are those of the first alone.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn listeners(&self) -> Result<Vec<TcpListener>, SetupError> {
        self.listeners_beside(Vec::new())
    }

    /// The same, with those that were handed over as they are. All of them are to be served, those too that this node's
    /// programs give nothing to: somebody may wait there.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn listeners_beside(&self, handed: Vec<TcpListener>) -> Result<Vec<TcpListener>, SetupError> {
        let NodeConfig { listen_port, queues, .. } = self.config;
        netns::within(self.proxy_netns(), || handed::complete(handed, listen_port, queues)).map_err(
            SetupError::cannot(
                format!("listen on {queues} ports from {listen_port} on in the proxy's network namespace"),
                "CAP_NET_ADMIN is needed for IP_TRANSPARENT, and the ports must be free",
            ),
        )
    }
}

fn load(pins: &Pins, flows: u32) -> Result<Ebpf, SetupError> {
    let directory = pins.maps();
    let paths: Vec<_> = map::PINNED.iter().map(|name| (*name, directory.join(name))).collect();
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(map::FLOWS, flows);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| SetupError::Load(chain(&error)))?;
    for name in program::ALL {
        attach::load(attach::classifier(&mut ebpf, name)?)
            .map_err(|error| SetupError::Load(format!("{name}: {}", chain(&error))))?;
    }
    Ok(ebpf)
}

/// The kernel's numbers of the maps that are pinned.
fn pinned(pins: &Pins) -> Result<Vec<(&'static str, u32)>, SetupError> {
    let number = |name: &'static str| match MapInfo::from_pin(pins.maps().join(name)) {
        Ok(info) => Ok((name, info.id())),
        Err(error) => Err(SetupError::Map { what: "look at", map: name, reason: error.to_string() }),
    };
    map::PINNED.into_iter().filter(|name| pins.maps().join(name).exists()).map(number).collect()
}

/// An error with its causes: the kernel's own word is the last of them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
