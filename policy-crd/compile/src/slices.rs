//! What an `EndpointSlice` says: of which Service it is, and which of its addresses can be an endpoint at all.
//!
//! Slices are written by tenants, so nothing in one says who an address is. Knows nothing of Services or of rules.

use crate::index::canonical;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::net::IpAddr;

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of the Service that a slice is of.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((slice.metadata.namespace.as_deref().unwrap_or("default"), name))
}

/// An endpoint's address; `None`: none that the API server would take.
pub(crate) fn address(slice: &EndpointSlice, text: &str) -> Option<IpAddr> {
    let address = canonical(text.parse().ok()?);
    (slice.address_type != "FQDN" && !is_special(address)).then_some(address)
}

/// What the API server refuses as an endpoint: addresses that mean another host to everybody who uses them, and a
/// cloud's own 169.254.169.254.
fn is_special(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local
}
