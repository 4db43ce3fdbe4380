//! The maps, and the few reads that every hook makes.
//!
//! A generation is five inner maps in one slot. A program reads the epoch once and takes the slot from it,
//! so that a packet sees one generation whole, whatever the loader swaps meanwhile.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use sluice_bpf_abi::{
    Address, Bucket, COUNTERS as COUNTER_COUNT, Config, Counter, EndpointValue, FlowEntry, FlowKey, Limits,
    MAX_CLASSES, MAX_ENDPOINTS, MAX_FLOWS, MAX_LOCALS, MAX_ROWS, MAX_SERVICES, Quota, REMOTE_NODE, RowKey,
    RowValue, SLOTS, ServiceKey,
};

type Classes = LpmTrie<Address, u32, { MAX_CLASSES as usize }>;
// Their values as words: below Linux 6.2 the kernel takes an inner map that the loader made, which has no BTF, only
// where the BTF of the declared one has no struct for a value (it compares where in the value a timer could be).
type Rows = LpmTrie<RowKey, [u32; ROW_WORDS], { MAX_ROWS as usize }>;
type Endpoints = HashMap<u32, [u32; ENDPOINT_WORDS], { MAX_ENDPOINTS as usize }>;
const ROW_WORDS: usize = size_of::<RowValue>() / 4;
const ENDPOINT_WORDS: usize = size_of::<EndpointValue>() / 4;
type Locals = HashMap<Address, u32, { MAX_LOCALS as usize }>;
type Services = HashMap<ServiceKey, u32, { MAX_SERVICES as usize }>;

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static EPOCH: Array<u64, 1> = Array::new();
#[btf_map]
static CLASSES: ArrayOfMaps<Classes, { SLOTS as usize }> = ArrayOfMaps::new();
#[btf_map]
static ROWS: ArrayOfMaps<Rows, { SLOTS as usize }> = ArrayOfMaps::new();
#[btf_map]
static ENDPOINTS: ArrayOfMaps<Endpoints, { SLOTS as usize }> = ArrayOfMaps::new();
#[btf_map]
static LOCALS: ArrayOfMaps<Locals, { SLOTS as usize }> = ArrayOfMaps::new();
#[btf_map]
static SERVICES: ArrayOfMaps<Services, { SLOTS as usize }> = ArrayOfMaps::new();
// LRU, so that a table that is full refuses nobody: what has been used once and never again goes first. An endpoint's
// limits (`flow.rs`) keep one endpoint's flood from filling it. What goes is judged again by the rows at its next
// packet: a connection in both orientations, so that one that was cut, and whose entry many endpoints' floods together
// have evicted, can live on where the rows let its other end open one.
#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey, FlowEntry, { MAX_FLOWS as usize }> = LruHashMap::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { COUNTER_COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static LIMITS: Array<Limits, 1> = Array::new();
#[btf_map]
static QUOTAS: HashMap<u32, Quota, { MAX_ENDPOINTS as usize }> = HashMap::new();

/// What each endpoint may take. Before the loader wrote it nothing is limited.
#[inline(always)]
pub(crate) fn limits() -> Option<&'static Limits> {
    LIMITS.get(0)
}

/// What an endpoint has used; made where there is none yet. `None`: there is no room for one more endpoint's.
#[inline(always)]
pub(crate) fn quota(ifindex: u32) -> Option<&'static mut Quota> {
    if QUOTAS.get_ptr_mut(ifindex).is_none() {
        let _ = QUOTAS.insert(ifindex, Quota::default(), BPF_NOEXIST);
    }
    let quota = QUOTAS.get_ptr_mut(ifindex)?;
    // SAFETY: the kernel keeps the element until the program returns. CPUs race on single words, and the limits are
    // held to within their number.
    Some(unsafe { &mut *quota })
}

/// Takes one of `rate` tokens a second out of a bucket; whether there was one. A rate of 0 is no limit.
#[inline(always)]
pub(crate) fn take(bucket: &mut Bucket, rate: u32, now: u64) -> bool {
    take_above(bucket, rate, 0, now)
}

/// The same, where so many are left to others.
#[inline(always)]
pub(crate) fn take_above(bucket: &mut Bucket, rate: u32, left: u32, now: u64) -> bool {
    if rate == 0 {
        return true;
    }
    let waited = now.saturating_sub(bucket.filled);
    if waited >= SECOND {
        bucket.filled = now;
        bucket.tokens = rate;
    } else {
        let earned = waited * u64::from(rate) / SECOND;
        if earned > 0 {
            // By what was earned, not to now: what is left of a token is not lost.
            bucket.filled += earned * SECOND / u64::from(rate);
            let tokens = u64::from(bucket.tokens) + earned;
            bucket.tokens = if tokens > u64::from(rate) { rate } else { tokens as u32 };
        }
    }
    if bucket.tokens <= left {
        return false;
    }
    bucket.tokens -= 1;
    true
}

const SECOND: u64 = 1_000_000_000;
const BPF_NOEXIST: u64 = 1;

/// One more for this reason.
#[inline(always)]
pub(crate) fn count(reason: Counter) {
    if let Some(cell) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the cell is this CPU's own and softirqs do not nest on one CPU.
        unsafe { *cell += 1 }
    }
}

/// The node's configuration; all zero before the loader wrote it, which drops what should go to the proxy.
#[inline(always)]
pub(crate) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// The generation in force, read once per packet.
#[derive(Clone, Copy)]
pub(crate) struct Generation {
    /// What flows are stamped with.
    pub(crate) epoch: u64,
    slot: u32,
}

impl Generation {
    /// The one in force now.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        Self::of(EPOCH.get(0).copied().unwrap_or(0))
    }

    /// The one that an epoch stands for.
    #[inline(always)]
    pub(crate) fn of(epoch: u64) -> Self {
        Self { epoch, slot: (epoch & 1) as u32 }
    }

    /// The endpoint behind this device.
    #[inline(always)]
    pub(crate) fn behind(self, ifindex: u32) -> Option<EndpointValue> {
        let inner = ENDPOINTS.get(self.slot)?;
        // SAFETY: inner maps of a slot in force are not written; the value is copied at once. It is as long as the
        // words, and every pattern of bits is one.
        unsafe {
            inner
                .get(ifindex)
                .map(|words| core::mem::transmute::<[u32; ENDPOINT_WORDS], EndpointValue>(*words))
        }
    }

    /// Who on this node owns an address: an endpoint's ifindex, [`LOCAL_NODE`] or [`REMOTE_NODE`].
    ///
    /// [`LOCAL_NODE`]: sluice_bpf_abi::LOCAL_NODE
    #[inline(always)]
    pub(crate) fn owner(self, address: &Address) -> Option<u32> {
        let inner = LOCALS.get(self.slot)?;
        // SAFETY: as in `profile`.
        unsafe { inner.get(address) }.copied()
    }

    /// Whether an address is this node's or another's.
    #[inline(always)]
    pub(crate) fn is_node(self, address: &Address) -> bool {
        self.owner(address).is_some_and(|owner| owner >= REMOTE_NODE)
    }

    /// The endpoint of this node that owns an address.
    #[inline(always)]
    pub(crate) fn endpoint(self, address: &Address) -> Option<u32> {
        self.owner(address).filter(|&owner| owner < REMOTE_NODE)
    }

    /// Whether an endpoint, or another port of a bridge, is reached by this device.
    #[inline(always)]
    pub(crate) fn reached_by(self, endpoint: u32, device: u32) -> bool {
        self.behind(endpoint).is_some_and(|endpoint| endpoint.way == device)
    }

    /// The class of an address; 0, the class that nothing allows, where no prefix contains it.
    #[inline(always)]
    pub(crate) fn class(self, address: &Address) -> u32 {
        let Some(inner) = CLASSES.get(self.slot) else { return 0 };
        inner.get(&Key::new(128, *address)).copied().unwrap_or(0)
    }

    /// The class of a Service's port, if an address stands for one.
    #[inline(always)]
    pub(crate) fn service(self, address: &Address, port: [u8; 2], protocol: u8) -> Option<u32> {
        let inner = SERVICES.get(self.slot)?;
        let key = ServiceKey { address: *address, port, protocol, pad: 0 };
        // SAFETY: as in `profile`.
        unsafe { inner.get(key) }.copied()
    }

    /// The row with the longest port prefix.
    #[inline(always)]
    pub(crate) fn row(self, key: &RowKey) -> Option<RowValue> {
        let inner = ROWS.get(self.slot)?;
        let words = inner.get(&Key::new(RowKey::BITS, *key))?;
        // SAFETY: as long as the words, and every pattern of bits is one.
        Some(unsafe { core::mem::transmute::<[u32; ROW_WORDS], RowValue>(*words) })
    }
}
