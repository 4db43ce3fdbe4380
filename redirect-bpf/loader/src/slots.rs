//! The two slots that generations are written to, in turn, and the one write that puts one in force.
//!
//! Everything that can fail fails before that write, so a snapshot that cannot be written leaves the one before as it
//! is. After it the kernel is waited for, until no program can still be using the slot that was in force (an RCU grace
//! period). What is acknowledged is therefore all that any packet is judged by; and nobody reads the other slot.
//!
//! So that slot's maps are written where they are: the difference alone, as this process remembers what it wrote there
//! two generations ago. Why that is right:
//!
//! - **Who read the epoch just before the write** runs on, by the slot of then, which is whole and stays as it is until
//!   he is done: the wait is after the write, before the acknowledgement, and before that slot is next written. A
//!   process that dies between the write and the wait has acknowledged nothing, and the next one waits before it
//!   writes, as does this one where the wait failed or somebody else has written the epoch meanwhile.
//! - **In what order** keys are removed and written, that a trie is rebuilt on the way, and that the kernel gives the
//!   place of a removed element to another at once: nobody looks at that slot meanwhile. Whoever reads the new epoch
//!   sees all that was written before it: there is a barrier before, and he comes to the maps by way of the epoch.
//! - **A call for many that fails half way**, or one of us that dies: the slot is half written and not in force. This
//!   process then remembers nothing of it and makes new maps; so does the next process, which believes nothing that it
//!   finds in a slot. New maps are made as well where there is no room, where so much differs that it takes less time,
//!   and where what is in the slot is not the map that was put there.
//! - **What is in a map** is read back whole each time, keys and values, before it is put in force: what somebody else
//!   wrote or removed since makes it a new map as well.
//! - **Two processes at once** would each write what the other may put in force: one holds [`Claim::alone`] meanwhile.
//!
//! Knows nothing of what the maps say. Called by the node.
//!
//! [`Claim::alone`]: crate::claims::Claim::alone

use crate::crash;
use crate::elements::Elements;
use crate::error::ApplyError;
use crate::generation::{Contents, epoch, failed};
use crate::maps::{Classes, Endpoints, Inner, Locals, Maps, Rows, Services};
use aya::maps::MapError;
use sluice_bpf_abi::{Address, REMOTE_NODE, SLOTS, map};
use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

/// As many elements as the kernel writes in the time for which it must be waited for where new maps take the place of
/// old ones: some ten milliseconds.
const GRACE: usize = 8_192;
/// Room that every map has beyond what is in it now, at least.
const SPARE: usize = 64;

/// What this process knows of the slots.
#[derive(Default)]
pub(crate) struct Slots {
    /// The generation that it put in force last.
    last: Option<u64>,
    /// Nobody uses the slot that is not in force any more.
    quiet: bool,
    written: [Option<Written>; SLOTS as usize],
}

/// What is in the maps of a slot.
struct Written {
    rows: Table<Rows>,
    classes: Table<Classes>,
    services: Table<Services>,
    endpoints: Table<Endpoints>,
    locals: Table<Locals>,
}

/// A map and what is in it.
struct Table<M: Inner> {
    map: M,
    id: u32,
    room: u32,
    holds: HashMap<M::Key, M::Value>,
    /// It is not in its slot yet.
    new: bool,
}

impl Slots {
    /// Writes a generation and puts it in force; the epoch that stands for it. To be followed by [`Slots::settle`].
    pub(crate) fn commit(&mut self, maps: &mut Maps, contents: Contents) -> Result<u64, ApplyError> {
        let before = epoch(maps)?;
        let epoch = before + 1;
        let slot = (epoch % u64::from(SLOTS)) as u32;
        // Another process has put one in force since.
        if self.last != Some(before) {
            *self = Self::default();
        }
        if !self.quiet {
            self.wait(maps, before).map_err(failed("wait for", map::SERVICES))?;
            crash::point("wait for the slot");
        }
        // From here on nobody knows what is in it, until it is whole.
        let old = self.written[slot as usize].take();
        let mut written = Written::write(maps, slot, old, contents)?;
        crash::point("write the generation");
        written.swap(maps, slot)?;
        self.quiet = false;
        // A CPU that orders its writes as it likes does not show the epoch before what it stands for.
        fence(Ordering::SeqCst);
        // The one write. A program reads it once per packet and takes the slot from its lowest bit.
        maps.epoch.set(0, epoch, 0).map_err(failed("write", map::EPOCH))?;
        let found = self::epoch(maps)?;
        if found != epoch {
            return Err(ApplyError::ReadBack { what: "the epoch", found, written: epoch });
        }
        crash::point("swap the generation");
        self.last = Some(epoch);
        self.written[slot as usize] = Some(written);
        Ok(epoch)
    }

    /// Waits until the generation that was put in force is all that any packet is judged by.
    pub(crate) fn settle(&mut self, maps: &mut Maps) -> Result<(), ApplyError> {
        let Some(epoch) = self.last.filter(|_| !self.quiet) else { return Ok(()) };
        self.wait(maps, epoch).map_err(|error| ApplyError::Unsettled(error.to_string()))?;
        crash::point("wait for the programs");
        Ok(())
    }

    /// The devices of the addresses of the generation in force, whoever wrote it.
    pub(crate) fn owners(&self, maps: &Maps) -> Result<HashMap<Address, u32>, ApplyError> {
        let epoch = epoch(maps)?;
        let slot = (epoch % u64::from(SLOTS)) as u32;
        let is_pods = |owner: u32| owner < REMOTE_NODE;
        if self.last == Some(epoch)
            && let Some(written) = &self.written[slot as usize]
        {
            let all = written.locals.holds.iter().map(|(address, owner)| (*address, *owner));
            return Ok(all.filter(|(_, owner)| is_pods(*owner)).collect());
        }
        // Another process's; none where there has been no generation yet.
        let Ok(locals) = maps.locals.get(&slot, 0) else { return Ok(HashMap::new()) };
        let all = locals.iter().map(|entry| entry.map_err(failed("read", map::LOCALS)));
        all.filter(|entry| entry.as_ref().map_or(true, |(_, owner)| is_pods(*owner))).collect()
    }

    /// Somebody has put the other slot in force for a while.
    pub(crate) const fn disturbed(&mut self) {
        self.quiet = false;
    }

    /// Waits until every program that may still read the slot before this generation's has ended. There is no call for
    /// that alone; but the kernel does so at every write to a map of maps (Linux 4.19), and to write what is there
    /// changes nothing. (`membarrier` does as well, but not on a machine with one CPU.)
    fn wait(&mut self, maps: &mut Maps, epoch: u64) -> Result<(), MapError> {
        let slot = (epoch % u64::from(SLOTS)) as u32;
        match &self.written[slot as usize] {
            Some(written) => maps.services.set(slot, &written.services.map, 0)?,
            None => {
                let services = match maps.services.get(&slot, 0) {
                    // Nothing has ever been in force, or somebody took it away. One without Services says as much.
                    Err(MapError::KeyNotFound) => Services::make(1)?,
                    there => there?,
                };
                maps.services.set(slot, &services, 0)?;
            }
        }
        self.quiet = true;
        Ok(())
    }
}

impl Written {
    fn write(maps: &Maps, slot: u32, old: Option<Self>, new: Contents) -> Result<Self, ApplyError> {
        let (rows, classes, services, endpoints, locals) = match old {
            Some(old) => {
                (Some(old.rows), Some(old.classes), Some(old.services), Some(old.endpoints), Some(old.locals))
            }
            None => (None, None, None, None, None),
        };
        Ok(Self {
            rows: Table::write(maps, slot, rows, new.rows)?,
            classes: Table::write(maps, slot, classes, new.classes)?,
            services: Table::write(maps, slot, services, new.services)?,
            endpoints: Table::write(maps, slot, endpoints, new.endpoints)?,
            locals: Table::write(maps, slot, locals, new.locals)?,
        })
    }

    /// Puts those that are new into their slot. At each the kernel waits, as [`settle`] does; all at once they wait for
    /// the same moment, one after the other each for its own.
    fn swap(&mut self, maps: &mut Maps, slot: u32) -> Result<(), ApplyError> {
        let Maps { rows, classes, services, endpoints, locals, .. } = maps;
        std::thread::scope(|scope| {
            let swaps = [
                self.rows.new.then(|| scope.spawn(|| swap(rows, slot, &self.rows))),
                self.classes.new.then(|| scope.spawn(|| swap(classes, slot, &self.classes))),
                self.services.new.then(|| scope.spawn(|| swap(services, slot, &self.services))),
                self.endpoints.new.then(|| scope.spawn(|| swap(endpoints, slot, &self.endpoints))),
                self.locals.new.then(|| scope.spawn(|| swap(locals, slot, &self.locals))),
            ];
            // Every one is waited for, also where another failed.
            let ended = swaps.map(|swap| {
                swap.map_or(Ok(()), |swap| {
                    swap.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
            });
            ended.into_iter().collect::<Result<(), _>>()
        })?;
        self.rows.new = false;
        self.classes.new = false;
        self.services.new = false;
        self.endpoints.new = false;
        self.locals.new = false;
        Ok(())
    }
}

fn swap<M: Inner>(
    outer: &mut aya::maps::ArrayOfMaps<aya::maps::MapData, M>,
    slot: u32,
    table: &Table<M>,
) -> Result<(), ApplyError> {
    outer.set(slot, &table.map, 0).map_err(failed("swap", M::NAME))?;
    crash::point("swap a map");
    Ok(())
}

impl<M: Inner> Table<M> {
    /// A map with these elements: the one that was in the slot, or a new one.
    fn write(
        maps: &Maps,
        slot: u32,
        old: Option<Self>,
        new: HashMap<M::Key, M::Value>,
    ) -> Result<Self, ApplyError> {
        // Not full: below Linux 6.13 a trie that is takes no other value of a key either.
        let Some(old) = old.filter(|old| new.len() < old.room as usize && old.is_in(maps, slot)) else {
            return Self::make(new);
        };
        let gone: Vec<M::Key> = old.holds.keys().filter(|key| !new.contains_key(key)).copied().collect();
        let differs = |(key, value): &(&M::Key, &M::Value)| old.holds.get(key) != Some(value);
        let other: Vec<_> = new.iter().filter(differs).map(|(key, value)| (*key, *value)).collect();
        if gone.len() + other.len() > new.len() + GRACE {
            return Self::make(new);
        }
        let mut table = Self { holds: new, ..old };
        match table.change(gone, other).and_then(|()| table.read_back()) {
            Ok(()) => Ok(table),
            Err(error) => {
                tracing::warn!(%error, "a map is made anew");
                Self::make(std::mem::take(&mut table.holds))
            }
        }
    }

    fn make(holds: HashMap<M::Key, M::Value>) -> Result<Self, ApplyError> {
        let room = room(holds.len(), M::MOST);
        let map = M::make(room).map_err(failed("create", M::NAME))?;
        let id = map.data().info().map_err(failed("look at", M::NAME))?.id();
        let table = Self { map, id, room, holds, new: true };
        let all = table.holds.iter().map(|(key, value)| (*key, *value));
        table.elements()?.write(all).map_err(failed("write", M::NAME))?;
        table.read_back()?;
        Ok(table)
    }

    fn change(&self, gone: Vec<M::Key>, other: Vec<(M::Key, M::Value)>) -> Result<(), ApplyError> {
        let elements = self.elements()?;
        if !gone.is_empty() {
            elements.remove(gone.into_iter()).map_err(failed("write", M::NAME))?;
            crash::point("remove what is gone");
        }
        if !other.is_empty() {
            elements.write(other.into_iter()).map_err(failed("write", M::NAME))?;
            crash::point("write what differs");
        }
        Ok(())
    }

    /// That the map has these elements and no others: what is said to be in force is there.
    fn read_back(&self) -> Result<(), ApplyError> {
        let (mut found, mut foreign) = (0, 0);
        let look = |keys: &[M::Key], values: &[M::Value]| {
            for (key, value) in keys.iter().zip(values) {
                *(if self.holds.get(key) == Some(value) { &mut found } else { &mut foreign }) += 1;
            }
            // More than there is room for are none that we wrote.
            found + foreign <= u64::from(M::MOST)
        };
        self.elements()?.walk(look).map_err(failed("read", M::NAME))?;
        let written = self.holds.len() as u64;
        if (found, foreign) == (written, 0) {
            return Ok(());
        }
        Err(ApplyError::ReadBack { what: M::NAME, found: found + foreign, written })
    }

    /// Whether it is what is in the slot.
    fn is_in(&self, maps: &Maps, slot: u32) -> bool {
        M::there(maps, slot) == Some(self.id)
    }

    fn elements(&self) -> Result<Elements<'_, M::Key, M::Value>, ApplyError> {
        Elements::of(self.map.data()).map_err(failed("use", M::NAME))
    }
}

/// Room for so many and some more, so that the next generations find place in the same map.
fn room(count: usize, most: u32) -> u32 {
    let ample = (count + count / 4 + SPARE).next_power_of_two();
    u32::try_from(ample).unwrap_or(u32::MAX).min(most)
}
