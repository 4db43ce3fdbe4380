//! Kinds that an API server may not have: whether they are defined, and in which version, as long as control runs.
//!
//! Asked is the definition itself, by its name. That a list of the kind answers 404 would not do: an API server that
//! has just started does so for kinds that it has. When the definition goes, its objects have gone before it. Starts
//! and ends the watch of the kind. Writes to the store alone.

use crate::cluster::kinds::Kind;
use crate::cluster::reflect::{self, Told};
use crate::cluster::shared::{Part, Shared};
use crate::cluster::store::Event;
use crate::cluster::watch;
use kube::api::{Api, ApiResource};
use serde_json::Value;
use tokio::sync::watch as state;

/// What is known of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Defined {
    /// Nothing yet.
    Unknown,
    /// There is none.
    Not,
    /// There is one, and its kind is not served yet.
    NotYet,
    /// This version of it is read.
    As(&'static str),
    /// It serves these versions, none of which is read.
    Otherwise(Vec<String>),
}

/// Follows a kind while it is defined. Never ends by itself.
pub(super) async fn follow(client: kube::Client, kind: Kind, name: &str, shared: Shared) {
    let resource = ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    };
    let api = Api::all_with(client.clone(), &resource);
    let (tell, told) = state::channel(Defined::Unknown);
    let mut listed = Defined::Not;
    let definition = reflect::follow(api, &resource, Some(format!("metadata.name={name}")), |heard| {
        let event = match heard {
            Told::Works => return shared.works(kind, Part::Definition),
            Told::Fails(reason) => return shared.fails(kind, Part::Definition, &reason),
            Told::Event(event) => event,
        };
        let now = match event {
            Event::Listing => {
                listed = Defined::Not;
                return;
            }
            Event::Listed(object) => {
                listed = defined(kind, &object);
                return;
            }
            Event::Complete { .. } => listed.clone(),
            Event::Applied(object) => defined(kind, &object),
            Event::Deleted(_) | Event::Absent => Defined::Not,
        };
        tell.send_replace(now);
    });
    tokio::join!(definition, objects(client, kind, told, &shared));
}

/// Follows the kind's objects in whichever version is defined. A watch ends where its definition does, before anything
/// else is taken: it runs in this task.
async fn objects(client: kube::Client, kind: Kind, mut told: state::Receiver<Defined>, shared: &Shared) {
    let mut watched = false;
    loop {
        let now = told.borrow_and_update().clone();
        say(kind, &now, watched, shared);
        match &now {
            Defined::Unknown => {}
            Defined::Not => {
                shared.take(kind, Event::Absent);
                watched = false;
            }
            // What was read of it stays, if anything was: to forget it would be to open what it closes.
            Defined::NotYet | Defined::Otherwise(_) if watched => {}
            Defined::NotYet | Defined::Otherwise(_) => shared.take(kind, Event::Absent),
            Defined::As(version) => {
                watched = true;
                tokio::select! {
                    () = watch::follow(client.clone(), kind, version, shared) => {}
                    // A definition that is just applied again may be served no longer for a moment.
                    () = until(&mut told, |other| *other != now && *other != Defined::NotYet) => {}
                }
                continue;
            }
        }
        until(&mut told, |other| *other != now).await;
    }
}

/// Waits for another state. Who tells them lives as long as who waits.
async fn until(told: &mut state::Receiver<Defined>, is: impl FnMut(&Defined) -> bool) {
    let _ = told.wait_for(is).await;
}

fn say(kind: Kind, now: &Defined, watched: bool, shared: &Shared) {
    let name = kind.name();
    let unread = match now {
        Defined::Otherwise(versions) => {
            let effect = if watched {
                "what was read of it before stays in force"
            } else {
                "its objects are not in force"
            };
            Some(format!("{name} is served in {}, which is not read; {effect}", versions.join(", ")))
        }
        _ => None,
    };
    shared.unread(kind, unread.as_deref());
    match now {
        Defined::Unknown | Defined::Otherwise(_) => {}
        Defined::Not => tracing::info!("{name}: not defined in this cluster"),
        Defined::NotYet => tracing::info!("{name}: defined, and not served yet"),
        Defined::As(version) => tracing::info!("{name}: defined, read as {}", kind.api_version(version)),
    }
}

fn defined(kind: Kind, definition: &Value) -> Defined {
    let conditions = definition["status"]["conditions"].as_array();
    let established = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    if !established {
        return Defined::NotYet;
    }
    let versions = definition["spec"]["versions"].as_array();
    let served: Vec<String> = versions
        .into_iter()
        .flatten()
        .filter(|version| version["served"] == true)
        .filter_map(|version| version["name"].as_str().map(str::to_owned))
        .collect();
    match kind.versions().iter().find(|version| served.iter().any(|served| served == *version)) {
        Some(version) => Defined::As(version),
        None => Defined::Otherwise(served),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition(established: &str, versions: &[(&str, bool)]) -> Value {
        let versions: Vec<Value> =
            versions.iter().map(|(name, served)| json!({"name": name, "served": served})).collect();
        json!({"spec": {"versions": versions},
            "status": {"conditions": [{"type": "Established", "status": established}]}})
    }

    #[test]
    fn the_first_version_that_is_read_and_served_is_taken() {
        let of = |definition: &Value| defined(Kind::CiliumCIDRGroup, definition);
        assert_eq!(of(&definition("True", &[("v2alpha1", true), ("v2", true)])), Defined::As("v2"));
        assert_eq!(of(&definition("True", &[("v2alpha1", true), ("v2", false)])), Defined::As("v2alpha1"));
        assert_eq!(of(&definition("True", &[("v3", true)])), Defined::Otherwise(vec!["v3".into()]));
        assert_eq!(of(&definition("False", &[("v2", true)])), Defined::NotYet);
        assert_eq!(of(&json!({})), Defined::NotYet);
    }
}
