//! Folds the rules of a profile into L3/L4 rows for the kernel.
//!
//! Every row is what [`Side::row`](crate::profile::Side::row) answers for its ports: the kernel and the proxy
//! cannot disagree, because both ask the same walk. Knows nothing of maps or of eBPF.

use crate::class::ClassId;
use crate::decider::Decider;
use crate::indexed::IndexedSide;
use crate::port::{PortRange, Protocol};
use crate::profile::{Direction, IsolatedPorts, ProfileId, Side};
use crate::snapshot::Snapshot;
use crate::verdict::Connection;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the kernel does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowAction {
    /// Let it pass.
    Allow,
    /// Refuse it.
    Deny,
    /// Hand it to the proxy.
    ToProxy,
}

/// One verdict of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// What happens.
    pub action: RowAction,
    /// `ToProxy` only because of audited policies: without a proxy the flow passes.
    pub fail_open: bool,
    /// Audited policies would refuse this flow at L3/L4: it passes and is counted.
    pub audit: bool,
    /// The refusal is answered: a reset of TCP, else that it is administratively prohibited.
    pub reject: bool,
    /// Of a denial or an allow what decided, as the verdict names it: where both layers allow, the rule of the later
    /// one. `None` where nothing isolates, and to the proxy, which says itself what decided.
    pub by: Option<Decider>,
}

impl Row {
    /// Nothing is refused, recorded or named.
    const PASSES: Self =
        Self { action: RowAction::Allow, fail_open: false, audit: false, reject: false, by: None };
}

/// Ports by their leading bits, as a longest-prefix map keys on them: `len` 0 is every port, 16 is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortPrefix {
    /// The first port; bits beyond `len` are zero.
    pub port: u16,
    /// How many leading bits count, 0 to 16.
    pub len: u8,
}

/// A row with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowEntry {
    /// Whose rules.
    pub profile: ProfileId,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// The other end.
    pub class: ClassId,
    /// The protocol.
    pub protocol: Protocol,
    /// The peer's port on egress, the endpoint's on ingress: always the destination port of the connection.
    pub ports: PortPrefix,
    /// The verdict.
    pub row: Row,
}

impl Snapshot {
    /// Every row of the node: for each profile, direction, class and protocol the fewest port prefixes that say
    /// what the walk says of each port. A key that is not among them does not exist: the kernel denies it.
    ///
    /// What a process of the node sends to its pods has rows of its own, the [`host_rows`](Self::host_rows). What else
    /// wears the node's address comes from nobody knows whom, and the row of that address says so.
    pub fn rows(&self) -> impl Iterator<Item = RowEntry> + '_ {
        self.fold_rows(true)
    }

    /// The same verdicts in fewer rows: ports that differ by the rule that decides alone are one, and none is named.
    pub fn rows_unnamed(&self) -> impl Iterator<Item = RowEntry> + '_ {
        self.fold_rows(false)
    }

    /// The rows of what the processes of a node open to its own pods, for a snapshot of one node: by the class of the
    /// address that a process sends from, [`ClassId::MISSING`] for every address of the node that no object names.
    ///
    /// The Admin tier alone has a say there. A profile of which it says nothing has none of these rows, and the kernel
    /// lets the node through where there is none.
    pub fn host_rows(&self) -> impl Iterator<Item = RowEntry> + '_ {
        let numbers = 0..u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        let own = numbers.map(ClassId).filter(|class| self.is_own_node(*class));
        let peers: Vec<(ClassId, ClassId)> =
            own.map(|class| (class, class)).chain([(ClassId::MISSING, self.host_class(|_| true))]).collect();
        let profiles = self.profiles.iter().zip(0..).map(|(profile, id)| (ProfileId(id), profile));
        profiles.filter(|(_, profile)| !profile.ingress.admin.is_empty()).flat_map(move |(id, profile)| {
            let folded = Folded::new(profile.side(Direction::Ingress), true);
            let rows: Vec<RowEntry> = peers
                .iter()
                .flat_map(|(class, peer)| {
                    let rows = folded.fold(|protocol, port| Connection {
                        from_host: true,
                        ..Connection::new(*peer, protocol, port)
                    });
                    rows.iter().map(|row| entry(id, Direction::Ingress, *class, *row)).collect::<Vec<_>>()
                })
                .collect();
            let says = rows.iter().any(|entry| entry.row != Row::PASSES);
            if says { rows } else { Vec::new() }
        })
    }

    fn fold_rows(&self, named: bool) -> impl Iterator<Item = RowEntry> + '_ {
        let classes = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        let sides = self.profiles.iter().zip(0..).flat_map(|(profile, id)| {
            Direction::ALL.map(|direction| (ProfileId(id), direction, profile.side(direction)))
        });
        sides.flat_map(move |(profile, direction, side)| {
            let mut folded = Folded::new(side, named);
            (0..classes).map(ClassId).filter(|class| !self.is_vacant(*class)).flat_map(move |class| {
                let own = direction == Direction::Ingress && self.is_own_node(class);
                let rows = folded.rows(if own { ClassId::MISSING } else { class });
                (0..rows.len()).map(move |at| entry(profile, direction, class, rows[at]))
            })
        })
    }
}

/// The rows of one class: by protocol and ports.
type ClassRows = Arc<[ClassRow]>;
type ClassRow = (Protocol, PortPrefix, Row);

fn entry(
    profile: ProfileId,
    direction: Direction,
    class: ClassId,
    (protocol, ports, row): ClassRow,
) -> RowEntry {
    RowEntry { profile, direction, class, protocol, ports, row }
}

/// The rows of one side. Classes that no rule tells apart have the same, which are folded once.
struct Folded<'a> {
    side: IndexedSide<'a>,
    /// Whether rows name what decides.
    named: bool,
    cuts: [(Protocol, Cuts); Protocol::ALL.len()],
    /// By group, once folded.
    groups: Vec<Option<ClassRows>>,
}

impl<'a> Folded<'a> {
    fn new(side: IndexedSide<'a>, named: bool) -> Self {
        let cuts = Protocol::ALL.map(|protocol| (protocol, Cuts::of(&side, protocol)));
        Self { side, named, cuts, groups: vec![None; side.index.groups.len()] }
    }

    fn rows(&mut self, class: ClassId) -> ClassRows {
        // Nobody shares the verdicts of the peer that nobody knows.
        let fold = |this: &Self| this.fold(|protocol, port| Connection::new(class, protocol, port));
        if class == ClassId::MISSING {
            return fold(self);
        }
        let group = self.side.index.groups.of(class) as usize;
        if let Some(Some(rows)) = self.groups.get(group) {
            return rows.clone();
        }
        let rows = fold(self);
        if let Some(known) = self.groups.get_mut(group) {
            *known = Some(rows.clone());
        }
        rows
    }

    fn fold(&self, asked: impl Fn(Protocol, u16) -> Connection) -> ClassRows {
        let rows = self.cuts.iter().flat_map(|(protocol, cuts)| {
            let rows = cuts.fold(|port| {
                let row = self.side.row(&asked(*protocol, port));
                Row { by: row.by.filter(|_| self.named), ..row }
            });
            rows.into_iter().map(|(ports, row)| (*protocol, ports, row))
        });
        rows.collect()
    }
}

/// The port numbers where something may change, for one side and protocol.
#[derive(Clone, Debug)]
struct Cuts {
    /// First ports of the intervals between which no rule tells ports apart; begins with 0.
    starts: Vec<u16>,
    /// A port that no rule names, if there is one: what holds for it is the row of every port.
    unnamed: Option<u16>,
}

impl Cuts {
    fn of(side: &Side, protocol: Protocol) -> Self {
        let rules = side.rules();
        let mut ranges: Vec<(u16, u16)> = if protocol.is_keyed() {
            rules
                .flat_map(|rule| rule.ranges())
                .filter(|range: &&PortRange| range.protocol == protocol)
                .map(|range| (range.first, range.last))
                .collect()
        } else {
            Vec::new()
        };
        for isolation in side.layers.iter().flat_map(|layer| &layer.isolation) {
            if let IsolatedPorts::Listed(listed) = &isolation.ports
                && protocol.has_ports()
            {
                ranges.extend(listed);
            }
        }
        let mut starts = BTreeSet::from([0]);
        for (first, last) in &ranges {
            starts.insert(*first);
            starts.extend(last.checked_add(1));
        }
        ranges.sort_unstable();
        let mut begun = ranges.iter().peekable();
        let mut named_to = None;
        let unnamed = starts.iter().copied().find(|port| {
            while let Some((_, last)) = begun.next_if(|(first, _)| first <= port) {
                named_to = named_to.max(Some(*last));
            }
            named_to < Some(*port)
        });
        Self { starts: starts.into_iter().collect(), unnamed }
    }

    fn fold(&self, row: impl Fn(u16) -> Row) -> Vec<(PortPrefix, Row)> {
        let rest = row(self.unnamed.unwrap_or(0));
        let mut out = vec![(PortPrefix { port: 0, len: 0 }, rest)];
        let ends = self.starts.iter().skip(1).map(|start| start - 1).chain([u16::MAX]);
        let mut merged: Vec<(u16, u16, Row)> = Vec::new();
        for (first, last) in self.starts.iter().copied().zip(ends) {
            let row = row(first);
            match merged.last_mut() {
                Some((_, end, same)) if *same == row => *end = last,
                _ => merged.push((first, last, row)),
            }
        }
        for (first, last, row) in merged.into_iter().filter(|(_, _, row)| *row != rest) {
            out.extend(prefixes(first, last).into_iter().map(|prefix| (prefix, row)));
        }
        out
    }
}

/// The fewest prefixes that make up a range: at most 30 for any range of 16-bit ports.
#[must_use]
pub fn prefixes(first: u16, last: u16) -> Vec<PortPrefix> {
    let mut out = Vec::new();
    let (mut at, end) = (u32::from(first), u32::from(last));
    while at <= end {
        let mut size = if at == 0 { 1 << 16 } else { at & at.wrapping_neg() };
        while at + size - 1 > end {
            size >>= 1;
        }
        let len = 16 - u8::try_from(size.trailing_zeros()).unwrap_or(16);
        out.push(PortPrefix { port: u16::try_from(at).unwrap_or(u16::MAX), len });
        at += size;
    }
    out
}
