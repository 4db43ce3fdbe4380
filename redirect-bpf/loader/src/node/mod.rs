//! One node: everything that the loader holds in the kernel, from set-up to removal.

mod begin;
mod config;
mod places;

use crate::attach;
use crate::bpffs::Pins;
use crate::claims::Claim;
use crate::clsact;
use crate::counters::Counters;
use crate::crash;
use crate::discover;
use crate::error::{ApplyError, SetupError};
use crate::events::Events;
use crate::fill::Fill;
use crate::flows::{self, Swept};
use crate::generation::{self, Plan};
use crate::helper::{self, Helper};
use crate::maps::Maps;
use crate::netns;
use crate::origins::{Book, Page};
use crate::slots::Slots;
use crate::sockets;
use crate::upgrade::Before;
use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::TcAttachType;
pub(crate) use begin::{OBJECT, chain};
pub use config::{DEFAULT_MARK, NodeConfig};
use rustix::io::Errno;
use sluice_bpf_abi::{map, program};
use sluice_policy::{Snapshot, Workload};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// An endpoint whose verdicts the kernel gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// `namespace/pod`.
    pub endpoint: String,
    /// The node's end of its veth.
    pub device: String,
}

/// An endpoint that nothing is enforced for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// `namespace/pod`.
    pub endpoint: String,
    /// Why.
    pub why: String,
}

/// What is in force after a snapshot was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The snapshot's.
    pub generation: u64,
    /// The endpoints with both hooks.
    pub attached: Vec<Attached>,
    /// The endpoints without.
    pub missing: Vec<Missing>,
    /// The rows in force.
    pub rows: usize,
    /// What of the time before could not be taken away, or of the proxy's way not be set. It makes nothing more permissive; to apply again tries again.
    pub problems: Vec<String>,
}

/// Everything of one node. See the crate's documentation for what outlives it.
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) netns: OwnedFd,
    pub(crate) pins: Pins,
    pub(crate) before: Before,
    pub(crate) ebpf: Ebpf,
    pub(crate) maps: Maps,
    pub(crate) helper: Helper,
    /// What the numbers in events stand for.
    book: Arc<Book>,
    /// The maps that are pinned, by the kernel's numbers.
    pub(crate) pinned: Vec<(&'static str, u32)>,
    /// What this process put in force last.
    pub(crate) epoch: Option<u64>,
    /// The devices that have hooks by that.
    pub(crate) hooked: Vec<u32>,
    /// What it wrote for that, and for the one before.
    pub(crate) slots: Slots,
    /// Who has taken whose address, as far as it has been told: an endpoint, and the other's device.
    claims: HashSet<(String, u32)>,
    /// Who had which address by that.
    owners: HashMap<IpAddr, Arc<Workload>>,
    /// How full the maps of that are.
    fill: Vec<Fill>,
    /// Flows, when the table was walked last.
    swept: usize,
    /// Last, so that nobody takes everything away while any of it is in use.
    _claim: Claim,
}

impl Node {
    /// The proxy's own network namespace.
    #[must_use]
    pub fn proxy_netns(&self) -> BorrowedFd<'_> {
        self.helper.netns.as_fd()
    }

    /// Puts a snapshot in force: rows first, then the hooks of new endpoints, then the removal of old ones.
    /// An endpoint that cannot be found or attached does not hold up the others.
    ///
    /// # Errors
    /// The snapshot before stays in force, but for [`ApplyError::Unsettled`], where this one is and is to be applied
    /// again. After the rows' one write nothing else fails as a whole: what could not be attached is missing, what
    /// could not be taken away is a problem.
    pub fn apply(&mut self, snapshot: &Snapshot) -> Result<Applied, ApplyError> {
        let _alone = Claim::alone(&self.pins.links())?;
        self.before.is_ours(&self.pins)?;
        self.before.look_again(&self.pins)?;
        let wanted: HashSet<IpAddr> =
            snapshot.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        let found = discover::discover(self.netns.as_fd(), &wanted)
            .map_err(ApplyError::io("look for the pods' veths"))?;
        let measured = self.helper.measure(self.netns.as_fd());
        let mut plan = Plan::new(snapshot, &found);
        let mut applied = Applied {
            generation: snapshot.generation,
            attached: Vec::new(),
            missing: Vec::new(),
            rows: plan.rows(),
            problems: Vec::new(),
        };
        let (devices, endpoints) = self.place(snapshot, &found, &mut plan, &mut applied.missing);
        let (fill, origins) = (plan.fill(), std::mem::take(&mut plan.origins));
        let kept: HashSet<u32> = plan.endpoints.keys().copied().collect();
        let mut left = snapshot.left(&self.owners);
        left.extend(plan.moved(&self.slots.owners(&self.maps)?));
        // What does not fit fails here, before anything is touched.
        let contents = plan.contents()?;
        // What the node's administrator changed since is taken note of here.
        self.configure(self.helper.outer.index)?;
        crash::point("write the configuration again");
        self.book.write(Page {
            epoch: generation::epoch(&self.maps)? + 1,
            generation: snapshot.generation,
            origins,
            endpoints,
        });
        self.epoch = Some(self.slots.commit(&mut self.maps, contents)?);
        self.fill = fill;
        self.slots.settle(&mut self.maps)?;
        applied.problems.extend(self.end_connections(snapshot, &left));
        // Before our hooks need them, and once more for what the others' hooks let in meanwhile.
        let mut imported = self.before.import(&mut self.maps);
        let mut judged = HashSet::new();
        for (device, endpoint) in devices {
            let label = found.name(device).unwrap_or_default().to_owned();
            match self.attach(device, &label) {
                Ok(_) => {
                    judged.insert(device);
                    applied.attached.extend(endpoint.map(|endpoint| Attached { endpoint, device: label }));
                }
                Err(error) => {
                    let missing = |endpoint| Missing { endpoint, why: error.to_string() };
                    applied.missing.extend(endpoint.map(missing));
                }
            }
        }
        self.hooked = judged.iter().copied().collect();
        imported += self.before.import(&mut self.maps);
        if imported > 0 {
            tracing::info!(flows = imported, "taken over from the version before");
        }
        applied.problems.extend(self.let_go(|device| !kept.contains(&device)));
        applied.problems.extend(measured.err().map(|error| error.to_string()));
        applied.problems.extend(self.before.retire(&judged, !applied.missing.is_empty()));
        Ok(applied)
    }

    /// Ends what the proxy has open with addresses whose pod has left them: nothing that was said for it may come to
    /// whoever is next. Not before the generation is in force, so that nothing comes about by the one before any more;
    /// and before the hooks of those who are new.
    fn end_connections(&mut self, snapshot: &Snapshot, left: &HashSet<IpAddr>) -> Option<String> {
        match sockets::end(self.helper.netns.as_fd(), left) {
            Ok(ended) => {
                if ended > 0 {
                    tracing::info!(
                        ended,
                        addresses = left.len(),
                        "pods have left: what the proxy had open with them is reset"
                    );
                }
                self.owners = snapshot.owners();
                None
            }
            // Tried again by what is known of the names.
            Err(error) => Some(error.to_string()),
        }
    }

    /// What the kernel tells of flows. One process reads at a time.
    ///
    /// # Errors
    /// If another process reads them, or the ring cannot be opened.
    pub fn events(&self) -> Result<Events, SetupError> {
        Events::open(&self.pins.maps(), self.book.clone())
    }

    /// Takes the hooks of devices off that are no endpoints any more. What cannot be taken away is told: it only ever
    /// denies.
    fn let_go(&self, old: impl Fn(u32) -> bool + Send + Sync) -> Vec<String> {
        let pins = &self.pins;
        let work = || -> Result<Vec<SetupError>, SetupError> {
            attach::forget_gone(pins)?;
            let devices = attach::devices(pins)?.into_iter().filter(|device| old(*device));
            Ok(devices.filter_map(|device| attach::detach(pins, device).err()).collect())
        };
        let problems = match netns::within(self.netns.as_fd(), || Ok(work())).map_err(enter()) {
            Ok(Ok(problems)) => problems,
            Ok(Err(error)) | Err(error) => vec![error],
        };
        problems.iter().map(ToString::to_string).collect()
    }

    /// What the kernel counted.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Counters, SetupError> {
        Counters::read(&self.maps.counters)
    }

    /// Counts each endpoint's flows and removes what has been silent for too long. To be called every few seconds:
    /// where it is not, the number of an endpoint's flows is soon held against nobody, and only the rate of new ones
    /// is. It takes time with the number of flows: 240,000 took 0.75 s in a build without optimisation, on two busy
    /// cores.
    ///
    /// # Errors
    /// If a map cannot be read or written.
    pub fn sweep(&mut self) -> Result<Swept, SetupError> {
        let lives = attach::devices(&self.pins)?;
        let swept = flows::sweep(&mut self.maps, &lives)?;
        self.swept = swept.flows;
        Ok(swept)
    }

    /// How full the maps are: those of the generation that this process put in force, and the flow table when it was
    /// walked last.
    #[must_use]
    pub fn fill(&self) -> Vec<Fill> {
        // A table that was there before keeps the room that it was made with.
        let made = MapInfo::from_pin(self.pins.maps().join(map::FLOWS)).map(|info| info.max_entries());
        let flows = Fill { map: map::FLOWS, used: self.swept, max: made.unwrap_or(self.config.flows) };
        self.fill.iter().copied().chain([flows]).collect()
    }

    /// Flows that the kernel remembers now.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.maps.flows.keys().filter(Result::is_ok).count()
    }

    /// Stops: what is pinned stays in force; the helper and the proxy's namespace go, so that flows that L7
    /// rules govern are refused until a node is opened again.
    ///
    /// # Errors
    /// If the helper cannot be removed. It goes with the process in any case.
    pub fn release(mut self) -> Result<(), SetupError> {
        self.configure(0)?;
        helper::remove(&self.config.name, self.netns.as_fd())
    }

    /// Takes everything of ours off the node: hooks, pins of every version, what is noted beside them, the helper, and
    /// the bpffs if we mounted it. What somebody else made stays as it is, and a qdisc of ours does where somebody else
    /// has a filter in it. Nothing that ran before is needed; what an earlier attempt left is taken away as well. The
    /// node's network namespace is that of this thread.
    ///
    /// # Errors
    /// If an agent still runs. Otherwise says what stays.
    pub fn uninstall(config: &NodeConfig) -> Result<(), SetupError> {
        config::check(config)?;
        let netns =
            netns::current().map_err(SetupError::cannot("open /proc/thread-self/ns/net", "mount /proc"))?;
        let pins = Pins::existing(&config.bpffs)?;
        let claim = pins.as_ref().map(|pins| Claim::whole(pins.root())).transpose()?;
        let none = HashSet::new;
        let noted = pins.as_ref().map_or_else(|| Ok(none()), Pins::noted_qdiscs)?;
        let filters = || -> io::Result<()> {
            let there = clsact::all_devices()?;
            let devices: HashSet<u32> = clsact::devices()?.union(&noted).copied().collect();
            devices.intersection(&there).try_for_each(|device| {
                match clsact::detach(*device, noted.contains(device)) {
                    // It has gone meanwhile.
                    Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
                    done => done.map(drop),
                }
            })
        };
        netns::within(netns.as_fd(), filters).map_err(SetupError::cannot(
            "take the filters off the node's devices",
            "CAP_NET_ADMIN is needed",
        ))?;
        crash::point("take the filters away");
        if let Some(pins) = pins {
            pins.remove()?;
            crash::point("remove the pins");
            pins.forget_all()?;
        }
        helper::remove(&config.name, netns.as_fd())?;
        crash::point("remove the helper");
        drop(claim);
        Pins::remove_root(&config.bpffs)
    }

    fn take_over(&mut self) -> Result<(), SetupError> {
        let Self { ebpf, pins, netns, config, .. } = self;
        netns::within(netns.as_fd(), || Ok(attach::take_over(ebpf, pins, config.hooks))).map_err(enter())?
    }

    fn attach(&mut self, device: u32, label: &str) -> Result<bool, SetupError> {
        let Self { ebpf, pins, netns, config, .. } = self;
        netns::within(netns.as_fd(), || {
            Ok(attach::attach(ebpf, pins, config.hooks, device, label).and_then(|changed| {
                attach::detach_others(pins, config.hooks, device)?;
                Ok(changed)
            }))
        })
        .map_err(enter())?
    }

    pub(crate) fn attach_helper(&mut self) -> Result<(), SetupError> {
        let Self { ebpf, netns, helper, config, .. } = self;
        let inner = (helper.inner, helper.inner_name.as_str());
        netns::within(helper.netns.as_fd(), || {
            let side = TcAttachType::Ingress;
            Ok(attach::attach_unpinned(ebpf, config.hooks, program::TO_PROXY, inner, side))
        })
        .map_err(enter())??;
        let outer = (helper.outer.index, helper.outer.name.as_str());
        netns::within(netns.as_fd(), || {
            let side = TcAttachType::Ingress;
            Ok(attach::attach_unpinned(ebpf, config.hooks, program::FROM_PROXY, outer, side))
        })
        .map_err(enter())?
    }
}

fn enter() -> impl FnOnce(io::Error) -> SetupError {
    SetupError::cannot("enter a network namespace", "CAP_SYS_ADMIN is needed")
}
