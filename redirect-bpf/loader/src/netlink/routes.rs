//! Routes, rules and neighbours by netlink.
//!
//! Knows nothing of what they are for. Used by `helper`, `discover` and `check`.

use super::{
    ACK, AF_INET, AF_INET6, CREATE_NEW, CREATE_OR_REPLACE, DUMP, Mac, Message, Netlink, SCOPE_HOST,
    attributes, family, is_new, number,
};
use std::io;
use std::net::IpAddr;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWRULE: u16 = 32;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
/// `RT_TABLE_MAIN`.
const MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;
const RTPROT_STATIC: u8 = 4;
const SCOPE_LINK: u8 = 253;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;

/// A route's way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Everything is local, in this table.
    LocalDefault { table: u32, device: u32 },
    /// One address is behind a device.
    Host { address: IpAddr, device: u32 },
    /// Everything goes to this next hop, which need not be on a network of the device.
    Default { via: IpAddr, device: u32, metrics: Metrics },
}

/// What a route says of packets' sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metrics {
    /// The longest packet that is sent by it.
    pub(crate) mtu: u32,
    /// The MSS that TCP says to the other side.
    pub(crate) advmss: u32,
}

/// Headers without options (RFC 9293, section 3.7.1).
const TCP_HEADER: u32 = 20;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

impl Metrics {
    /// For packets of at most `mtu`, which are answered by packets of at most `answers`.
    pub(crate) const fn of(v6: bool, mtu: u32, answers: u32) -> Self {
        let header = if v6 { IPV6_HEADER } else { IPV4_HEADER };
        Self { mtu, advmss: answers.saturating_sub(header + TCP_HEADER) }
    }
}

impl Netlink {
    /// Adds a neighbour that is never asked for, in the place of another one; whether there was none.
    pub(crate) fn neighbour(&self, device: u32, address: IpAddr, mac: Mac) -> io::Result<bool> {
        let mut header = [0; 12];
        header[0] = family(address);
        header[4..8].copy_from_slice(&device.to_ne_bytes());
        header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        let order = |how: u16| {
            let mut message = Message::new(RTM_NEWNEIGH, ACK | how).bytes(&header);
            message.address(NDA_DST, address);
            message.attribute(NDA_LLADDR, &mac);
            self.order(message)
        };
        let new = is_new(order(CREATE_NEW))?;
        if !new {
            order(CREATE_OR_REPLACE)?;
        }
        Ok(new)
    }

    /// Adds a route of a family, a default route in the place of another one; whether it was not there, of a default
    /// route always.
    pub(crate) fn route(&self, v6: bool, way: Way) -> io::Result<bool> {
        let mut header = [0; 12];
        header[0] = if v6 { AF_INET6 } else { AF_INET };
        header[5] = RTPROT_STATIC;
        match way {
            Way::LocalDefault { table, device } => {
                header[6] = SCOPE_HOST;
                header[7] = RTN_LOCAL;
                let mut message = Message::new(RTM_NEWROUTE, ACK | CREATE_NEW).bytes(&header);
                message.attribute(RTA_TABLE, &table.to_ne_bytes());
                message.attribute(RTA_OIF, &device.to_ne_bytes());
                is_new(self.order(message))
            }
            Way::Host { address, device } => {
                header[1] = if v6 { 128 } else { 32 };
                header[4] = MAIN;
                header[6] = SCOPE_LINK;
                header[7] = RTN_UNICAST;
                let mut message = Message::new(RTM_NEWROUTE, ACK | CREATE_NEW).bytes(&header);
                message.address(RTA_DST, address);
                message.attribute(RTA_OIF, &device.to_ne_bytes());
                is_new(self.order(message))
            }
            Way::Default { via, device, metrics } => {
                header[4] = MAIN;
                header[7] = RTN_UNICAST;
                header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
                let mut message = Message::new(RTM_NEWROUTE, ACK | CREATE_OR_REPLACE).bytes(&header);
                message.attribute(RTA_OIF, &device.to_ne_bytes());
                message.address(RTA_GATEWAY, via);
                message.nest(RTA_METRICS, |nest| {
                    nest.attribute(RTAX_MTU, &metrics.mtu.to_ne_bytes());
                    nest.attribute(RTAX_ADVMSS, &metrics.advmss.to_ne_bytes());
                });
                self.order(message).map(|()| true)
            }
        }
    }

    /// What a family's default route says, if there is one. One without a word on sizes says 0.
    pub(crate) fn default_route(&self, v6: bool) -> io::Result<Option<Metrics>> {
        let mut header = [0; 12];
        header[0] = if v6 { AF_INET6 } else { AF_INET };
        let mut found = None;
        self.ask(Message::new(RTM_GETROUTE, DUMP).bytes(&header), |body| {
            let kind = body.get(..8).map(|head| (head[0], head[1], head[4], head[7]));
            if kind == Some((header[0], 0, MAIN, RTN_UNICAST)) {
                let nest = attributes(body, 12).find(|a| a.0 == RTA_METRICS).map_or(&[][..], |a| a.1);
                let metric =
                    |kind| attributes(nest, 0).find(|metric| metric.0 == kind).map_or(0, |a| number(a.1));
                found = Some(Metrics { mtu: metric(RTAX_MTU), advmss: metric(RTAX_ADVMSS) });
            }
        })?;
        Ok(found)
    }

    /// The device that what is sent to an address goes out by. `None` where there is no way.
    pub(crate) fn device_to(&self, address: IpAddr) -> io::Result<Option<u32>> {
        let mut header = [0; 12];
        header[0] = family(address);
        header[1] = if address.is_ipv6() { 128 } else { 32 };
        let mut message = Message::new(RTM_GETROUTE, 0).bytes(&header);
        message.address(RTA_DST, address);
        let mut device = None;
        self.ask(message, |body| {
            device = attributes(body, 12).find(|a| a.0 == RTA_OIF).map(|a| number(a.1));
        })?;
        Ok(device)
    }

    /// What comes in by a device is looked up in a table; whether that was not so.
    pub(crate) fn rule(&self, v6: bool, device: &str, table: u32, priority: u32) -> io::Result<bool> {
        let mut header = [0; 12];
        header[0] = if v6 { AF_INET6 } else { AF_INET };
        header[7] = FR_ACT_TO_TBL;
        let mut message = Message::new(RTM_NEWRULE, ACK | CREATE_NEW).bytes(&header);
        message.text(FRA_IIFNAME, device);
        message.attribute(FRA_TABLE, &table.to_ne_bytes());
        message.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
        is_new(self.order(message))
    }
}
