//! Services, both ways. A separate file only because they are a table of their own that nothing else points into.

use crate::decode::{
    DecodeError, Decoded, each, filled, pod_addresses, port, protocol as core_protocol, text,
};
use crate::encode::{address_bytes, protocol};
use crate::{limits, pb};
use sluice_policy as core;

/// Service → message.
pub(crate) fn service(service: &core::Service) -> pb::Service {
    pb::Service {
        namespace: service.namespace.to_string(),
        name: service.name.to_string(),
        addresses: service.addresses.iter().copied().map(address_bytes).collect(),
        ports: service.ports.iter().map(service_port).collect(),
        affinity: service.affinity,
    }
}

fn service_port(port: &core::ServicePort) -> pb::ServicePort {
    let backend = |backend: &core::Backend| pb::Backend {
        address: address_bytes(backend.address),
        port: u32::from(backend.port),
    };
    pb::ServicePort {
        protocol: protocol(port.protocol).into(),
        port: u32::from(port.port),
        backends: port.backends.iter().map(backend).collect(),
    }
}

/// Messages → Services.
pub(crate) fn services(messages: Vec<pb::Service>) -> Decoded<Vec<core::Service>> {
    each("services", messages, limits::SERVICES, |_, message| {
        let ports = each("ports", message.ports, limits::SERVICE_PORTS, |_, message| {
            let backends = each("backends", message.backends, limits::BACKENDS, |_, message| {
                let mut addresses = pod_addresses(vec![message.address])?;
                let address = addresses.pop().ok_or_else(|| DecodeError::new("address", "is missing"))?;
                Ok(core::Backend { address, port: filled_port(message.port)? })
            })?;
            Ok(core::ServicePort {
                protocol: core_protocol(message.protocol)?,
                port: filled_port(message.port)?,
                backends: backends.into(),
            })
        })?;
        Ok(core::Service {
            namespace: text("namespace", &message.namespace, limits::NAME_BYTES)?,
            name: filled("name", &message.name, limits::NAME_BYTES)?,
            addresses: pod_addresses(message.addresses)?,
            ports,
            affinity: message.affinity,
        })
    })
}

fn filled_port(value: u32) -> Decoded<u16> {
    match port("port", value)? {
        0 => Err(DecodeError::new("port", "0 is no port")),
        port => Ok(port),
    }
}
