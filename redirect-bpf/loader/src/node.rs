//! One node: everything that the loader holds in the kernel, from set-up to removal.

use crate::attach::{self, Hooks};
use crate::bpffs::Pins;
use crate::claims::Claim;
use crate::clsact;
use crate::counters::Counters;
use crate::crash;
use crate::discover::{self, Found};
use crate::error::{ApplyError, SetupError};
use crate::events::Events;
use crate::families;
use crate::fill::Fill;
use crate::flows::{self, Swept};
use crate::generation::{self, Plan};
use crate::handed;
use crate::helper::{self, Helper};
use crate::limits::EndpointLimits;
use crate::maps::Maps;
use crate::netns;
use crate::origins::{Book, Page};
use crate::placing::{self, Known, Place};
use crate::plain::Plain;
use crate::slots::Slots;
use crate::upgrade::Before;
use aya::maps::MapInfo;
use aya::programs::TcAttachType;
use aya::{Ebpf, EbpfLoader};
use rustix::io::Errno;
use sluice_bpf_abi::{
    Config, EndpointValue, MAX_FLOWS, MAX_TUNNELS, config_flag, endpoint_flag, map, program,
};
use sluice_policy::{Endpoint, Snapshot};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// The devices that hooks are for, each with the name of the endpoint behind it; none where it is closed.
type Devices = Vec<(u32, Option<String>)>;

/// The object is part of the binary; `cargo xtask build-bpf` makes it.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!("sluice.bpf.o");
/// The mark, unless told otherwise: no bit that kube-proxy, Cilium or the AWS CNI use.
pub const DEFAULT_MARK: u32 = 0x3011;
/// Device names have 15 bytes, and the helper's ends add one letter.
const MAX_NAME: usize = 14;
/// Connections that wait to be accepted: the kernel's own limit where it is lower.
const BACKLOG: i32 = 4_096;

/// What a node is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The names of the helper's ends derive from it: at most 14 letters, digits or dashes.
    pub name: String,
    /// A directory of our own. If it is on no bpffs, one is mounted there.
    pub bpffs: PathBuf,
    /// The port of the proxy's listeners, on loopback in its own namespace.
    pub listen_port: u16,
    /// What marks the proxy's packets on their way through the node's stack, for rules that others write; see
    /// [`DEFAULT_MARK`]. Never 0.
    pub mark: u32,
    /// Take over from a newer version's loader too, which is refused otherwise.
    pub roll_back: bool,
    /// What each endpoint may take.
    pub limits: EndpointLimits,
    /// The room of the flow table; see [`MAX_FLOWS`](sluice_bpf_abi::MAX_FLOWS). A table that is pinned already keeps
    /// the room that it was made with.
    pub flows: u32,
    /// How hooks are attached.
    pub hooks: Hooks,
}

impl NodeConfig {
    /// With the mark of [`DEFAULT_MARK`], and nothing out of the ordinary.
    #[must_use]
    pub fn new(name: impl Into<String>, bpffs: impl Into<PathBuf>, listen_port: u16) -> Self {
        let (name, bpffs) = (name.into(), bpffs.into());
        Self {
            name,
            bpffs,
            listen_port,
            mark: DEFAULT_MARK,
            roll_back: false,
            limits: EndpointLimits::default(),
            flows: MAX_FLOWS,
            hooks: Hooks::Auto,
        }
    }
}

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
    /// What of the time before could not be taken away. It makes nothing more permissive; to apply again tries again.
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
    /// How full the maps of that are.
    fill: Vec<Fill>,
    /// Flows, when the table was walked last.
    swept: usize,
    /// Last, so that nobody takes everything away while any of it is in use.
    _claim: Claim,
}

/// What is known of an address that no pod can change.
struct Word<'a>(&'a Node);

impl Known for Word<'_> {
    fn in_force(&self, address: IpAddr) -> Option<u32> {
        generation::owner(&self.0.maps, address).or_else(|| self.0.before.owner(address))
    }

    fn routed(&self, address: IpAddr) -> Option<u32> {
        discover::routed(self.0.netns.as_fd(), address)
    }
}

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
        check(&config)?;
        handed::check(listeners, config.listen_port)?;
        Self::begin(config, |name, netns| Helper::adopt(name, netns, proxy_netns))
    }

    fn begin(
        mut config: NodeConfig,
        helper: impl FnOnce(&str, BorrowedFd<'_>) -> Result<Helper, SetupError>,
    ) -> Result<Self, SetupError> {
        check(&config)?;
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

    /// The proxy's own network namespace.
    #[must_use]
    pub fn proxy_netns(&self) -> BorrowedFd<'_> {
        self.helper.netns.as_fd()
    }

    /// The proxy's listeners, on `127.0.0.1` and `::1` of its namespace, where no pod reaches them but
    /// through the hooks. The local address of what they accept is the original destination. Where the kernel has no
    /// IPv6 there is the first alone.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn listeners(&self) -> Result<Vec<TcpListener>, SetupError> {
        let addresses = handed::addresses(self.config.listen_port);
        netns::within(self.proxy_netns(), || addresses.into_iter().map(listen).collect()).map_err(
            SetupError::cannot(
                format!("listen on port {} in the proxy's network namespace", self.config.listen_port),
                "CAP_NET_ADMIN is needed for IP_TRANSPARENT, and the port must be free",
            ),
        )
    }

    /// Puts a snapshot in force: rows first, then the hooks of new endpoints, then the removal of old ones.
    /// An endpoint that cannot be found or attached does not hold up the others.
    ///
    /// # Errors
    /// The snapshot before stays in force, but for [`ApplyError::Unsettled`], where this one is and is to be applied
    /// again. After the rows' one write nothing else fails as a whole: what could not be attached is missing, what
    /// could not be taken away is a problem.
    pub fn apply(&mut self, snapshot: &Snapshot) -> Result<Applied, ApplyError> {
        let _alone = Claim::alone(&self.pins.maps())?;
        self.before.is_ours(&self.pins)?;
        self.before.look_again(&self.pins)?;
        let wanted: HashSet<IpAddr> =
            snapshot.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        let found = discover::discover(self.netns.as_fd(), &wanted)
            .map_err(ApplyError::io("look for the pods' veths"))?;
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
        applied.problems = self.let_go(|device| !kept.contains(&device));
        applied.problems.extend(self.before.retire(&judged, !applied.missing.is_empty()));
        Ok(applied)
    }

    /// Puts a snapshot's endpoints behind their devices in a plan, and the devices that are nobody's for certain behind
    /// none.
    fn place(
        &mut self,
        snapshot: &Snapshot,
        found: &Found,
        plan: &mut Plan,
        missing: &mut Vec<Missing>,
    ) -> (Devices, HashMap<u32, Arc<Endpoint>>) {
        let (mut devices, mut endpoints) = (Vec::new(), HashMap::new());
        let places = self.places(found, snapshot);
        for (endpoint, place) in snapshot.endpoints.iter().zip(places.iter().cloned()) {
            match place {
                Place::At(device) if plan.endpoints.contains_key(&device) => {
                    let why = "another endpoint of this snapshot has the same device".to_owned();
                    missing.push(Missing { endpoint: name(endpoint), why });
                }
                Place::At(device) => {
                    let value = self.value(found, device, endpoint);
                    plan.endpoint(device, value, &endpoint.addresses);
                    endpoints.insert(device, endpoint.clone());
                    devices.push((device, Some(name(endpoint))));
                }
                Place::Contested(_, why) | Place::Missing(why) => {
                    missing.push(Missing { endpoint: name(endpoint), why });
                }
            }
        }
        let closed = self.closed(found, &places, snapshot).into_iter();
        devices.extend(
            closed.filter(|device| plan.close(*device, found.way(*device))).map(|device| (device, None)),
        );
        (devices, endpoints)
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
        check(config)?;
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

    /// The place of each endpoint. One that cannot be found keeps the device that the generation in force knows it by,
    /// as long as that is there: not to find a pod must not let it go.
    fn places(&mut self, found: &Found, snapshot: &Snapshot) -> Vec<Place> {
        let addresses: Vec<&[IpAddr]> = snapshot.endpoints.iter().map(|e| &e.addresses[..]).collect();
        let places = placing::place(&addresses, found, &Word(self));
        let mut claims = HashSet::new();
        for (endpoint, place) in snapshot.endpoints.iter().zip(&places) {
            let others = found.candidates(&endpoint.addresses).into_iter();
            if let Place::At(own) = place {
                claims.extend(others.filter(|device| device != own).map(|device| (name(endpoint), device)));
            }
        }
        for (endpoint, device) in claims.difference(&self.claims) {
            let device = found.name(*device).unwrap_or("?");
            tracing::warn!(
                endpoint,
                device,
                "the pod behind this device has taken an address of the endpoint, and gets nothing by it: what it \
                 sends from there is dropped (spoofed)"
            );
        }
        self.claims = claims;
        places
    }

    /// Devices that are nobody's for sure and must not be without hooks: those of which it is not known whose they are,
    /// and those that had hooks for an address that is now elsewhere.
    fn closed(&self, found: &Found, places: &[Place], snapshot: &Snapshot) -> HashSet<u32> {
        let contested = places.iter().flat_map(|place| match place {
            Place::Contested(devices, _) => &devices[..],
            Place::At(_) | Place::Missing(_) => &[],
        });
        let addresses = snapshot.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        let before = addresses.filter_map(|address| Word(self).in_force(*address));
        let there = |device: &u32| found.name(*device).is_some();
        contested.copied().chain(before.filter(there)).collect()
    }

    /// What the programs know of an endpoint.
    fn value(&self, found: &Found, device: u32, endpoint: &Endpoint) -> EndpointValue {
        let mut value =
            EndpointValue { profile: endpoint.profile.0, way: found.way(device), ..EndpointValue::default() };
        let Some(now) = found.mac(device) else { return value };
        value.mac = generation::held(&self.maps, device, &endpoint.addresses).unwrap_or(now);
        value.flags |= endpoint_flag::MAC;
        if value.mac != now {
            tracing::warn!(
                endpoint = name(endpoint),
                "has changed its hardware address: what it sends is dropped (spoofed_mac) until it has the first one \
                 again or the pod is made anew"
            );
        }
        value
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

    fn flags(&self) -> u16 {
        let (v4, v6) = helper::bridge_netfilter(self.netns.as_fd());
        let bit = |on, bit| if on { bit } else { 0 };
        bit(v4, config_flag::BRIDGE_NF_V4) | bit(v6, config_flag::BRIDGE_NF_V6)
    }

    pub(crate) fn limit(&mut self) -> Result<(), SetupError> {
        let limits = self.config.limits.written();
        self.maps.limits.set(0, Plain(limits), 0).map_err(|error| SetupError::Map {
            what: "write",
            map: map::LIMITS,
            reason: error.to_string(),
        })
    }

    /// The ports of the node's tunnels. More than the programs look at would be some that nobody looks at.
    fn tunnels(&self) -> Result<[u16; MAX_TUNNELS], SetupError> {
        let found = discover::tunnels(self.netns.as_fd())
            .map_err(SetupError::cannot("look for the node's tunnels", "CAP_SYS_ADMIN is needed"))?;
        if found.len() > MAX_TUNNELS {
            return Err(SetupError::Config {
                what: format!("the node's VXLAN and Geneve devices have {} ports: {found:?}", found.len()),
                remedy: "give those of one kind the same port, or remove devices that nobody uses",
            });
        }
        let mut tunnels = [0; MAX_TUNNELS];
        tunnels.iter_mut().zip(found).for_each(|(place, port)| *place = port);
        Ok(tunnels)
    }

    /// What the programs must know now.
    pub(crate) fn wanted(&self) -> Result<Config, SetupError> {
        Ok(Config {
            helper_ifindex: self.helper.outer.index,
            mark: self.config.mark,
            proxy_nsid: self.helper.nsid,
            listen_port: self.config.listen_port,
            flags: self.flags(),
            tunnels: self.tunnels()?,
        })
    }

    pub(crate) fn configure(&mut self, helper_ifindex: u32) -> Result<(), SetupError> {
        let config = Config { helper_ifindex, ..self.wanted()? };
        self.maps.config.set(0, Plain(config), 0).map_err(|error| SetupError::Map {
            what: "write",
            map: map::CONFIG,
            reason: error.to_string(),
        })
    }
}

fn enter() -> impl FnOnce(io::Error) -> SetupError {
    SetupError::cannot("enter a network namespace", "CAP_SYS_ADMIN is needed")
}

fn name(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.workload.namespace, endpoint.workload.pod)
}

fn check(config: &NodeConfig) -> Result<(), SetupError> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let wrong = |what: &str, remedy| Err(SetupError::Config { what: what.to_owned(), remedy });
    if config.name.is_empty() || config.name.len() > MAX_NAME || !config.name.chars().all(fine) {
        return wrong(
            &format!("the node name {:?} makes no device name", config.name),
            "take 1 to 14 lower-case letters, digits or dashes",
        );
    }
    if config.mark == 0 {
        return wrong("the mark is 0, which every packet has", "take another, as 0x3011");
    }
    if config.flows == 0 {
        return wrong("the flow table has no room", "take its default, MAX_FLOWS");
    }
    if config.listen_port == 0 {
        return wrong(
            "the listeners' port is 0",
            "take a fixed one: the kernel looks the listeners up by it",
        );
    }
    Ok(())
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

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_ip_transparent_v4(true).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::PERM.raw_os_error() => {
            io::Error::new(error.kind(), "IP_TRANSPARENT is refused")
        }
        _ => error,
    })?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
