//! One watch a kind, for as long as control runs, into the store.
//!
//! Kinds that an API server always has are watched from the start, the others while they are defined. Whatever fails,
//! what was known stays. Called once at start.

use crate::cluster::connect::Client;
use crate::cluster::definitions;
use crate::cluster::kinds::Kind;
use crate::cluster::reflect::{self, Told};
use crate::cluster::shared::{Part, Shared};
use kube::api::{Api, ApiResource};
use tokio_util::sync::CancellationToken;

/// Follows every kind until shutdown.
pub fn run(client: &Client, shared: &Shared, shutdown: &CancellationToken) {
    for kind in Kind::ALL {
        let (client, shared) = (client.0.clone(), shared.clone());
        let task = async move {
            match kind.definition() {
                Some(name) => definitions::follow(client, kind, &name, shared).await,
                None => follow(client, kind, kind.versions()[0], &shared).await,
            }
        };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(task));
    }
}

/// Follows one kind. Never ends by itself.
pub(super) async fn follow(client: kube::Client, kind: Kind, version: &str, shared: &Shared) {
    let resource = ApiResource {
        group: kind.group().to_owned(),
        version: version.to_owned(),
        api_version: kind.api_version(version),
        kind: kind.name().to_owned(),
        plural: kind.plural().to_owned(),
    };
    let tell = |told| match told {
        Told::Works => shared.works(kind, Part::Objects),
        Told::Fails(reason) => shared.fails(kind, Part::Objects, &reason),
        Told::Event(event) => shared.take(kind, event),
    };
    reflect::follow(Api::all_with(client, &resource), &resource, None, tell).await;
}
