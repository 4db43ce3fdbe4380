//! What changes on the node behind our back is noticed, and put right where that can be.
//!
//! Looks at everything that a node needs and that anybody with the right capabilities may change: the hooks and their
//! place, the pins, what is written in the maps, the helper and what belongs to it. Knows nothing of who changed it.
//! Called every few seconds by the agent.

use crate::attach;
use crate::error::SetupError;
use crate::netlink::Netlink;
use crate::netns;
use crate::node::Node;
use crate::plain::Plain;
use aya::maps::{MapData, MapInfo};
use aya::programs::TcAttachType;
use sluice_bpf_abi::{map, program};
use std::collections::HashMap;
use std::os::fd::AsFd;

/// Something was not as we left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// What.
    pub what: String,
    /// Why it could not be put right; nothing if it was.
    pub stays: Option<String>,
}

impl Node {
    /// Looks whether everything is as it was left, and puts right what can be; what it found. Nothing: all is well.
    pub fn verify(&mut self) -> Vec<Drift> {
        let mut found = Vec::new();
        // What the next version changes is no drift, and to put it right would be to fight it.
        if let Err(error) = self.before.is_ours(&self.pins) {
            told(&mut found, "the node is another's by now: stop this process".to_owned(), Err(error));
            return found;
        }
        // Nor is what the process does that adopted the node, which writes what we would take for somebody's.
        if self.has_successor() {
            return found;
        }
        self.verify_pins(&mut found);
        self.verify_helper(&mut found);
        self.verify_maps(&mut found);
        self.verify_hooks(&mut found);
        found
    }

    /// Whether another loader has put its hook before ours on the helper that we share.
    fn has_successor(&mut self) -> bool {
        let Self { ebpf, netns, helper, config, .. } = self;
        let outer = (helper.outer.index, helper.outer.name.as_str());
        let look = || Ok(attach::has_successor(ebpf, config.hooks, program::FROM_PROXY, outer));
        netns::within(netns.as_fd(), look).unwrap_or(false)
    }

    /// A pin that is gone would let the next loader begin with empty maps.
    fn verify_pins(&self, found: &mut Vec<Drift>) {
        for (name, id) in &self.pinned {
            let path = self.pins.maps().join(name);
            if MapInfo::from_pin(&path).is_ok_and(|info| info.id() == *id) {
                continue;
            }
            let repair = || -> Result<(), String> {
                self.pins.create().map_err(|error| error.to_string())?;
                let _ = std::fs::remove_file(&path);
                let map = MapData::from_id(*id).map_err(|error| error.to_string())?;
                map.pin(&path).map_err(|error| error.to_string())
            };
            told(found, format!("the pin of map {name} was gone"), repair());
        }
    }

    fn verify_helper(&mut self, found: &mut Vec<Drift>) {
        let before = self.helper.outer.index;
        match self.helper.repair(self.netns.as_fd()) {
            Ok(changes) => changes.into_iter().for_each(|what| told(found, what, Ok::<_, String>(()))),
            Err(error) => told(found, "the helper is not as it must be".to_owned(), Err(error)),
        }
        if self.helper.outer.index != before {
            let done = self.attach_helper();
            told(found, "the helper's hooks went with it".to_owned(), done);
            return;
        }
        let Self { ebpf, netns, helper, config, .. } = self;
        let ends = [
            (program::TO_PROXY, helper.netns.as_fd(), (helper.inner, helper.inner_name.as_str())),
            (program::FROM_PROXY, netns.as_fd(), (helper.outer.index, helper.outer.name.as_str())),
        ];
        for (hook, at, device) in ends {
            let hold = || Ok(attach::hold_unpinned(ebpf, config.hooks, hook, device, TcAttachType::Ingress));
            let what = || format!("the hook {hook} of {} was gone, or not the first any more", device.1);
            match netns::within(at, hold) {
                Ok(Ok(false)) => {}
                Ok(done) => told(found, what(), done.map(|_| ())),
                Err(error) => told(found, what(), Err(error)),
            }
        }
    }

    fn verify_maps(&mut self, found: &mut Vec<Drift>) {
        let wanted = self.wanted();
        let is = self.maps.config.get(&0, 0).ok();
        if !wanted.is_ok_and(|wanted| is == Some(Plain(wanted))) {
            let done = self.configure(self.helper.outer.index);
            told(
                found,
                "the configuration in the kernel was another, or bridge-nf-call was switched".to_owned(),
                done,
            );
        }
        let limits = Plain(self.config.limits.written());
        if self.maps.limits.get(&0, 0).ok() != Some(limits) {
            let done = self.limit();
            told(found, format!("somebody wrote to map {}", map::LIMITS), done);
        }
        if let Some(epoch) = self.epoch
            && self.maps.epoch.get(&0, 0).ok() != Some(epoch)
        {
            // Packets were judged by the slot that is to be written next, and some still are.
            self.slots.disturbed();
            let done = self.maps.epoch.set(0, epoch, 0);
            told(found, format!("somebody wrote to map {}", map::EPOCH), done);
        }
    }

    fn verify_hooks(&mut self, found: &mut Vec<Drift>) {
        let Self { ebpf, pins, netns, config, hooked, .. } = self;
        let look = || {
            let links = Netlink::open()?.links()?;
            let names: HashMap<u32, &str> =
                links.iter().map(|link| (link.index, link.name.as_str())).collect();
            let mut told = Vec::new();
            // A device that is gone is the next snapshot's to tell.
            for (device, name) in hooked.iter().filter_map(|device| Some((*device, *names.get(device)?))) {
                match attach::attach(ebpf, pins, config.hooks, device, name) {
                    Ok(false) => {}
                    done => told.push((name.to_owned(), done.map(|_| ()))),
                }
            }
            Ok(told)
        };
        match netns::within(netns.as_fd(), look) {
            Ok(all) => all.into_iter().for_each(|(name, done): (String, Result<(), SetupError>)| {
                told(found, format!("a hook of {name} was gone, or not the first any more"), done);
            }),
            Err(error) => told(found, "the hooks cannot be looked at".to_owned(), Err(error)),
        }
    }
}

fn told<E: ToString>(found: &mut Vec<Drift>, what: String, done: Result<(), E>) {
    found.push(Drift { what, stays: done.err().map(|error| error.to_string()) });
}
