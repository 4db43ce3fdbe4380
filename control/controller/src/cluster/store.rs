//! The objects of a cluster as its API server last told of them: a value without I/O.
//!
//! Each kind is filled by lists and by events after them. A list counts when it is complete, and then as a whole;
//! until then, and while one fails, what was known before stays. Of one object the newest version counts, in
//! whatever order its versions come: an event that comes twice, late or out of order changes nothing. What is equal in
//! everything that is read is no change. Knows nothing of watches and of clocks. Called by `shared`.

use crate::cluster::kinds::Kind;
use serde::Deserialize as _;
use serde_json::Value;
use sluice_crd::{Loaded, Objects, PolicyStatus, load_value, slim};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Deleted objects that are remembered, of each kind, until its next list: an event of one of them may come late.
/// More are forgotten oldest first, and nothing older than they is taken any more.
const GONE: usize = 10_000;

/// What a watch tells of a kind. `Applied` and `Deleted` follow a complete list; each has the object at that version.
#[derive(Clone, Debug)]
pub enum Event {
    /// A list begins. One that had begun is forgotten.
    Listing,
    /// An object of that list.
    Listed(Value),
    /// The list is complete: there are no others.
    Complete {
        /// As of this version.
        version: Option<u64>,
    },
    /// An object was made or changed.
    Applied(Value),
    /// An object is gone.
    Deleted(Value),
    /// The API server has no such kind, so that there are no objects of it.
    Absent,
}

/// Namespace, empty if it has none, and name.
type Key = (Box<str>, Box<str>);

/// An object.
struct Entry {
    /// `None`: not a number, so that nothing is known to be older.
    version: Option<u64>,
    read: Loaded,
    meta: Option<Meta>,
}

/// What the API server says of a policy beside what is in it. A compiler reads none of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Meta {
    uid: Arc<str>,
    generation: i64,
    /// Of our own kinds: what is written there. That it changes is no change of the object.
    status: Option<Arc<PolicyStatus>>,
}

/// A policy as it is known to the API server: what is said about it goes to this one.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyMeta {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, empty if it has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Which of those that had this name.
    pub uid: Arc<str>,
    /// How often what it says was changed.
    pub generation: i64,
    /// What its status says, of our own kinds.
    pub status: Option<Arc<PolicyStatus>>,
    /// The version at which that stood there.
    pub version: Option<u64>,
}

/// What is known of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing yet: neither a list nor that there is no such kind.
    Nothing,
    /// There is no such kind.
    Absent,
    /// Its objects. How many, etcd's own quota bounds.
    Objects(usize),
}

/// The objects of a kind.
struct OfKind {
    known: bool,
    absent: bool,
    live: BTreeMap<Key, Entry>,
    /// The list that is not complete yet.
    listing: Option<BTreeMap<Key, Entry>>,
    /// Objects that went, with the version at which they did.
    gone: BTreeMap<Key, u64>,
    /// What is not known is not taken at this version or an older one: it had gone before.
    floor: u64,
}

/// Every kind's objects.
pub struct Store {
    kinds: BTreeMap<Kind, OfKind>,
}

impl Default for Store {
    fn default() -> Self {
        Self { kinds: Kind::ALL.iter().map(|kind| (*kind, OfKind::new())).collect() }
    }
}

impl Store {
    /// Takes what a watch tells. Says whether the objects are others than before.
    pub fn take(&mut self, kind: Kind, event: Event) -> bool {
        let was = self.is_complete();
        let changed = self.kinds.get_mut(&kind).is_some_and(|of_kind| of_kind.take(kind, event));
        changed || was != self.is_complete()
    }

    /// Whether every kind is known. Before, a missing deny could be one that is not listed yet: nothing may be made
    /// of the objects.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.kinds.values().all(|of_kind| of_kind.known)
    }

    /// What is known of a kind.
    #[must_use]
    pub fn known(&self, kind: Kind) -> Known {
        match self.kinds.get(&kind) {
            Some(OfKind { known: true, absent: true, .. }) => Known::Absent,
            Some(OfKind { known: true, live, .. }) => Known::Objects(live.len()),
            _ => Known::Nothing,
        }
    }

    /// The objects, in the order of their kinds and names, with what is wrong with their form. `None` before every
    /// kind is known.
    #[must_use]
    pub fn loaded(&self) -> Option<Loaded> {
        if !self.is_complete() {
            return None;
        }
        let mut loaded = Loaded::default();
        for entry in self.kinds.values().flat_map(|of_kind| of_kind.live.values()) {
            loaded.objects.extend(&entry.read.objects);
            loaded.problems.extend_from_slice(&entry.read.problems);
        }
        Some(loaded)
    }

    /// The policies among them as the API server knows them, in the order of their kinds and names.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyMeta> {
        let policies = self.kinds.iter().filter(|(kind, _)| kind.is_policy());
        let entries = policies.flat_map(|(kind, of_kind)| of_kind.live.iter().map(|entry| (*kind, entry)));
        let policy = |(kind, ((namespace, name), entry)): (Kind, (&Key, &Entry))| {
            let Meta { uid, generation, status } = entry.meta.clone().unwrap_or_default();
            let (namespace, name) = ((&**namespace).into(), (&**name).into());
            PolicyMeta { kind, namespace, name, uid, generation, status, version: entry.version }
        };
        entries.map(policy).collect()
    }

    /// All objects, for a question about some of them.
    #[must_use]
    pub fn objects(&self) -> Objects {
        self.loaded().map(|loaded| loaded.objects).unwrap_or_default()
    }
}

impl OfKind {
    const fn new() -> Self {
        Self {
            known: false,
            absent: false,
            live: BTreeMap::new(),
            listing: None,
            gone: BTreeMap::new(),
            floor: 0,
        }
    }

    fn take(&mut self, kind: Kind, event: Event) -> bool {
        match event {
            Event::Listing => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Event::Listed(object) => {
                if let (Some(listing), Some((key, entry))) = (&mut self.listing, read(kind, object)) {
                    listing.insert(key, entry);
                }
                false
            }
            Event::Complete { version } => self.complete(version),
            Event::Applied(object) => read(kind, object).is_some_and(|(key, entry)| self.apply(key, entry)),
            Event::Deleted(object) => place(&object).is_some_and(|key| self.delete(key, version(&object))),
            Event::Absent => {
                let changed = !self.live.is_empty();
                *self = Self { known: true, absent: true, ..Self::new() };
                changed
            }
        }
    }

    /// A list is the truth, also where it is older than what was known: a cluster may have been restored.
    fn complete(&mut self, version: Option<u64>) -> bool {
        // The end of a list whose beginning was missed says nothing.
        let Some(mut listing) = self.listing.take() else { return false };
        let mut changed = self.live.len() != listing.len();
        for (key, entry) in &mut listing {
            match self.live.remove(key) {
                Some(before) if before.says_the_same(entry) => entry.read = before.read,
                _ => changed = true,
            }
        }
        self.floor = version.unwrap_or(0);
        self.gone.clear();
        self.live = listing;
        (self.known, self.absent) = (true, false);
        changed
    }

    fn apply(&mut self, key: Key, entry: Entry) -> bool {
        if let Some(there) = self.live.get_mut(&key) {
            if there.version.is_some_and(|there| is_old(entry.version, there)) {
                return false;
            }
            let same = there.says_the_same(&entry);
            there.version = entry.version;
            there.meta = entry.meta;
            if !same {
                there.read = entry.read;
            }
            return !same;
        }
        let oldest = self.gone.get(&key).copied().unwrap_or(0).max(self.floor);
        if is_old(entry.version, oldest) || !self.known {
            return false;
        }
        self.gone.remove(&key);
        self.live.insert(key, entry);
        true
    }

    fn delete(&mut self, key: Key, version: Option<u64>) -> bool {
        let newer = |there: &Entry| there.version.zip(version).is_some_and(|(there, gone)| there > gone);
        if self.live.get(&key).is_some_and(newer) {
            return false;
        }
        let went = self.live.remove(&key).is_some();
        let Some(version) = version else { return went };
        let last = self.gone.entry(key).or_insert(version);
        *last = version.max(*last);
        if self.gone.len() > GONE {
            self.forget();
        }
        went
    }

    /// Forgets the older half of what went.
    fn forget(&mut self) {
        let mut versions: Vec<u64> = self.gone.values().copied().collect();
        versions.sort_unstable();
        let middle = versions[versions.len() / 2];
        self.floor = self.floor.max(middle);
        self.gone.retain(|_, version| *version > middle);
    }
}

impl Entry {
    /// Whether two readings of an object say the same, in form as well, and are known as the same: a change that says
    /// nothing new has a generation, and whoever waits for that to be observed waits for it.
    fn says_the_same(&self, other: &Self) -> bool {
        let known = |meta: &Option<Meta>| meta.as_ref().map(|meta| (meta.uid.clone(), meta.generation));
        self.read.problems == other.read.problems
            && known(&self.meta) == known(&other.meta)
            && self.read.objects.says_the_same(&other.read.objects)
    }
}

/// What the API server says of a policy, before it is slimmed.
fn meta(kind: Kind, object: &Value) -> Option<Meta> {
    if !kind.is_policy() {
        return None;
    }
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().into();
    let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
    // One that somebody else wrote in another form is as good as none.
    let status = kind.is_ours().then(|| PolicyStatus::deserialize(&object["status"]).ok()).flatten();
    Some(Meta { uid, generation, status: status.map(Arc::new) })
}

/// The version of an object: a number that grows (KEP-5504).
fn version(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok())
}

/// Whether a version is known to be no newer than another.
fn is_old(version: Option<u64>, than: u64) -> bool {
    version.is_some_and(|version| version <= than)
}

fn place(object: &Value) -> Option<Key> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().filter(|name| !name.is_empty())?;
    Some((metadata["namespace"].as_str().unwrap_or_default().into(), name.into()))
}

/// An object as the compiler reads it.
fn read(kind: Kind, object: Value) -> Option<(Key, Entry)> {
    let (key, version) = (place(&object)?, version(&object));
    let meta = meta(kind, &object);
    let mut object = object;
    // Items of a list do not say what they are.
    object["kind"] = kind.name().into();
    if object["apiVersion"].is_null() {
        object["apiVersion"] = kind.api_version(kind.versions()[0]).into();
    }
    let object = slim(object);
    Some((key, Entry { version, read: load_value([&object]), meta }))
}
