//! What a node is made from, and what the programs are told of it.
//!
//! Knows nothing of snapshots. Called by the node when it begins, at every generation, and where the node has drifted.

use super::Node;
use crate::attach::Hooks;
use crate::discover;
use crate::error::SetupError;
use crate::helper;
use crate::limits::EndpointLimits;
use crate::plain::Plain;
use sluice_bpf_abi::{Config, MAX_FLOWS, MAX_QUEUES, MAX_TUNNELS, config_flag, map};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// The mark, unless told otherwise: no bit that kube-proxy, Cilium or the AWS CNI use.
pub const DEFAULT_MARK: u32 = 0x3011;
/// Device names have 15 bytes, and the helper's ends add one letter.
const MAX_NAME: usize = 14;

/// What a node is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The names of the helper's ends derive from it: at most 14 letters, digits or dashes.
    pub name: String,
    /// A directory of our own. If it is on no bpffs, one is mounted there.
    pub bpffs: PathBuf,
    /// The port of the first of the proxy's listeners, on loopback in its own namespace.
    pub listen_port: u16,
    /// How many listeners it has on each address, on the ports from there on: 1 to [`MAX_QUEUES`]. A connection's ends
    /// say which is its own. Processes that hand the node over to each other had best agree: where the next one has
    /// another number, what SYN cookies stand for at that moment is refused.
    pub queues: u8,
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
            queues: 1,
            mark: DEFAULT_MARK,
            roll_back: false,
            limits: EndpointLimits::default(),
            flows: MAX_FLOWS,
            hooks: Hooks::Auto,
        }
    }
}

impl Node {
    fn flags(&self) -> u8 {
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
            queues: self.config.queues,
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

pub(super) fn check(config: &NodeConfig) -> Result<(), SetupError> {
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
    if config.queues == 0 || config.queues > MAX_QUEUES {
        return wrong(
            &format!("{} listeners on each address", config.queues),
            "take 1 to 64: they are handed over in one message",
        );
    }
    if config.listen_port.checked_add(u16::from(config.queues) - 1).is_none() {
        return wrong(
            &format!("{} ports from {} on are more than there are", config.queues, config.listen_port),
            "take a lower --listen-port",
        );
    }
    Ok(())
}
