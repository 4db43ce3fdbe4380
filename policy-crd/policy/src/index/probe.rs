//! What is looked up for one connection and what is known of it. Each key is hashed once, when first asked for.

use super::SideIndex;
use super::keys::{Case, Key, NameKeys, PathKeys};
use crate::class::ClassId;
use crate::host::host;
use crate::verdict::{Connection, Facts};
use std::cell::OnceCell;

/// One question to one side's index.
#[derive(Debug)]
pub(crate) struct Probe<'a> {
    pub(super) side: &'a SideIndex,
    pub(super) connection: Connection,
    pub(super) facts: Facts<'a>,
    /// The peer's group and the port. Nobody's group is the peer that nobody knows: it has the port alone.
    reach: [Key; 2],
    strict: OnceCell<PathKeys>,
    folded: OnceCell<PathKeys>,
    name: OnceCell<Option<NameKeys>>,
}

impl<'a> Probe<'a> {
    pub(crate) fn new(side: &'a SideIndex, connection: &Connection, facts: Facts<'a>) -> Self {
        let Connection { peer, protocol, port, .. } = *connection;
        let reach = [side.seed.group(side.groups.of(peer)), side.seed.port(protocol, port)];
        let (strict, folded, name) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { side, connection: *connection, facts, reach, strict, folded, name }
    }

    pub(crate) const fn index(&self) -> &'a SideIndex {
        self.side
    }

    pub(super) fn is_known(&self) -> bool {
        self.connection.peer != ClassId::MISSING
    }

    pub(super) fn reach(&self) -> &[Key] {
        if self.is_known() { &self.reach } else { &self.reach[1..] }
    }

    /// The keys of the strict reading, for allows.
    pub(super) fn strict(&self, strict: &str) -> &PathKeys {
        self.strict.get_or_init(|| self.side.seed.path(strict.as_bytes(), Case::Told))
    }

    /// The keys of a plain path, which is its own strict reading, for denies.
    pub(super) fn folded(&self, path: &str) -> &PathKeys {
        if !path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.strict(path);
        }
        self.folded.get_or_init(|| self.side.seed.path(path.as_bytes(), Case::Folded))
    }

    /// The keys of the host of a request, as it is compared, or of the server name of a TLS connection; `None` where
    /// there is none that can be read.
    pub(super) fn name(&self) -> Option<&NameKeys> {
        let read = || match self.facts {
            Facts::Request(request) => Some(self.side.seed.names(&host(request.host?)?)),
            Facts::Tls(name) => Some(self.side.seed.names(name?)),
            Facts::Connection | Facts::Unknown => None,
        };
        self.name.get_or_init(read).as_ref()
    }
}
