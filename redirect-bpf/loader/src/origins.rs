//! What the rows of a generation name: policies and rules, each by its place in one list.
//!
//! The kernel tells a number and the epoch; the list of that epoch says which policy and rule it is. Knows nothing
//! of events. The plan of a generation fills it, the node writes it into the book, events are looked up there.

use sluice_policy::{
    Decider, Direction, Endpoint, Policy, PolicyId, Profile, ProfileId, RowEntry, RuleName, Snapshot,
};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Generations whose numbers are remembered: an event waits for some milliseconds, and policies change some tens of
/// times a second at worst.
const KEPT: usize = 8;

/// The policy that decided, and its rule, if it was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The policy: of the rule, or the one that isolates where nothing granted.
    pub policy: Arc<Policy>,
    /// The rule.
    pub rule: Option<RuleName>,
}

/// The list of one generation, in the order in which its rows first named them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins(Vec<Origin>);

impl Origins {
    /// What a row's number stands for: counted from 1, 0 is nobody.
    pub(crate) fn get(&self, number: u32) -> Option<&Origin> {
        self.0.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }
}

/// Numbers what rows name.
pub(crate) struct Numbering<'a> {
    snapshot: &'a Snapshot,
    list: Origins,
    /// Many profiles have rules of one policy: a place in a profile is looked up once, a name numbered once.
    places: HashMap<(ProfileId, Direction, Decider), u32>,
    names: HashMap<(PolicyId, Option<RuleName>), u32>,
}

impl<'a> Numbering<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot) -> Self {
        Self { snapshot, list: Origins::default(), places: HashMap::new(), names: HashMap::new() }
    }

    /// The number of what decides a row.
    pub(crate) fn number(&mut self, entry: &RowEntry) -> u32 {
        let Some(by) = entry.row.by else { return 0 };
        let place = (entry.profile, entry.direction, by);
        if let Some(number) = self.places.get(&place) {
            return *number;
        }
        let side =
            self.snapshot.profile(entry.profile).map(|profile| Profile::side(profile, entry.direction));
        let Some((policy, rule)) = side.and_then(|side| side.decided(by)) else { return 0 };
        let list = &mut self.list.0;
        let number = *self.names.entry((policy.id, rule.cloned())).or_insert_with(|| {
            list.push(Origin { policy: policy.clone(), rule: rule.cloned() });
            u32::try_from(list.len()).unwrap_or(0)
        });
        self.places.insert(place, number);
        number
    }

    /// The list.
    pub(crate) fn done(self) -> Origins {
        self.list
    }
}

/// What the numbers of the last generations stand for. Written by the node, read by whoever reads the events.
#[derive(Debug, Default)]
pub(crate) struct Book(Mutex<VecDeque<Page>>);

/// One generation.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) epoch: u64,
    pub(crate) generation: u64,
    pub(crate) origins: Origins,
    /// By device.
    pub(crate) endpoints: HashMap<u32, Arc<Endpoint>>,
}

/// What is known of an event; all empty of an epoch that is long past, or that another process put in force.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) generation: Option<u64>,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) origin: Option<Origin>,
}

impl Book {
    /// Writes a page, to be done before its generation is in force: its first event may come at once.
    pub(crate) fn write(&self, page: Page) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that never came into force was of the same epoch.
        pages.retain(|kept| kept.epoch != page.epoch);
        if pages.len() >= KEPT {
            pages.pop_front();
        }
        pages.push_back(page);
    }

    pub(crate) fn known(&self, epoch: u64, device: u32, number: u32) -> Known {
        let pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(page) = pages.iter().find(|page| page.epoch == epoch) else { return Known::default() };
        Known {
            generation: Some(page.generation),
            endpoint: page.endpoints.get(&device).cloned(),
            origin: page.origins.get(number).cloned(),
        }
    }
}
