//! Services: an address that stands for others, and which of them a connection or a request goes to.
//!
//! [`vip`] knows who stands behind an address, [`balance`] which of them is taken, and [`route`] asks both and the
//! judge, in one answer. Nothing here knows HTTP, or reads a byte.

pub mod balance;
pub mod route;
pub mod vip;
