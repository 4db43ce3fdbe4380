//! Filters of a device's clsact qdisc, by netlink: how hooks are attached below Linux 6.6, where there are no tcx links.
//!
//! A filter is found again by its priority and handle, and replaced in one step. Needs `cls_bpf` and `sch_ingress`.
//! Knows nothing of what the programs do. Called by `attach` and `check`.

use crate::netlink::{ACK, CREATE_NEW, DUMP, Message, Netlink, attributes, number, text};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const CREATE: u16 = 0x400;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's return value is the verdict.
const DIRECT_ACTION: u32 = 1;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;
const HEADER: usize = 20;

/// A side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// What comes in by it.
    Ingress,
    /// What goes out by it.
    Egress,
}

impl Side {
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) priority: u16,
    pub(crate) handle: u32,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The kernel's number of its program.
    pub(crate) program: u32,
}

impl Netlink {
    /// Gives a device a clsact qdisc; one that is there stays.
    pub(crate) fn add_clsact(&self, device: u32) -> io::Result<()> {
        let mut message =
            Message::new(RTM_NEWQDISC, ACK | CREATE_NEW).bytes(&header(device, CLSACT_HANDLE, CLSACT, 0));
        message.text(TCA_KIND, "clsact");
        match self.order(message) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Whether a device has a clsact qdisc.
    pub(crate) fn has_clsact(&self, device: u32) -> io::Result<bool> {
        let mut found = false;
        let message = Message::new(RTM_GETQDISC, DUMP).bytes(&header(device, 0, 0, 0));
        // The kernel tells of every device, whichever is asked for.
        self.ask(message, |body| {
            let here = body.get(4..8).is_some_and(|index| number(index) == device);
            let kind = attributes(body, HEADER).find(|(kind, _)| *kind == TCA_KIND);
            found |= here && kind.is_some_and(|(_, kind)| text(kind) == "clsact");
        })?;
        Ok(found)
    }

    /// Takes the clsact qdisc of a device away, with every filter of it.
    pub(crate) fn remove_clsact(&self, device: u32) -> io::Result<()> {
        self.order(Message::new(RTM_DELQDISC, ACK).bytes(&header(device, CLSACT_HANDLE, CLSACT, 0)))
    }

    /// Sets a filter; one of the same priority and handle is replaced without a gap.
    pub(crate) fn set_filter(
        &self,
        device: u32,
        side: Side,
        (priority, handle): (u16, u32),
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        let header = header(device, handle, side.parent(), info(priority));
        let mut message = Message::new(RTM_NEWTFILTER, ACK | CREATE).bytes(&header);
        message.text(TCA_KIND, "bpf");
        message.nest(TCA_OPTIONS, |options| {
            options.attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
            options.text(TCA_BPF_NAME, name);
            options.attribute(TCA_BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
        });
        self.order(message)
    }

    /// Removes a filter.
    pub(crate) fn remove_filter(
        &self,
        device: u32,
        side: Side,
        (priority, handle): (u16, u32),
    ) -> io::Result<()> {
        let header = header(device, handle, side.parent(), info(priority));
        let mut message = Message::new(RTM_DELTFILTER, ACK).bytes(&header);
        message.text(TCA_KIND, "bpf");
        self.order(message)
    }

    /// The filters of one side of a device, in the order that packets meet them. None where there is no qdisc.
    pub(crate) fn filters(&self, device: u32, side: Side) -> io::Result<Vec<Filter>> {
        let mut filters = Vec::new();
        let message = Message::new(RTM_GETTFILTER, DUMP).bytes(&header(device, 0, side.parent(), 0));
        match self.ask(message, |body| filters.extend(parse(body))) {
            // No such qdisc, or nothing but devices without any.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Vec::new()),
            other => other.map(|()| filters),
        }
    }
}

fn header(device: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&device.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header[16..20].copy_from_slice(&info.to_ne_bytes());
    header
}

fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be())
}

fn parse(body: &[u8]) -> Option<Filter> {
    let priority = (number(body.get(16..20)?) >> 16) as u16;
    let mut filter = Filter { priority, handle: number(body.get(8..12)?), ..Filter::default() };
    for (kind, value) in attributes(body, HEADER) {
        match kind {
            TCA_KIND => filter.kind = text(value),
            TCA_OPTIONS => {
                for (kind, value) in attributes(value, 0) {
                    match kind {
                        TCA_BPF_NAME => filter.name = text(value),
                        TCA_BPF_ID => filter.program = number(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // The head of a chain has no handle.
    (filter.handle != 0).then_some(filter)
}
