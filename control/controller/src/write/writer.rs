//! Writes to the API server what the report says: statuses by server-side apply, Events.
//!
//! Knows nothing of what is in them. An answer that says that the API server has too much to do is taken as none at
//! all; one that says no is kept for the status file. Called by the controller's loop.

use crate::cluster::Client;
use crate::write::facts::Key;
use crate::write::notices::{Place, Tell};
use crate::write::queue::Outcome;
use crate::write::report::{Done, Exists, Reporter, Write};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::Value;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::task::{Id, JoinSet};

/// Whose fields the statuses are.
const MANAGER: &str = "sluice-control";
/// What is not answered by then is written again.
const ANSWER: Duration = Duration::from_secs(30);

/// What became of a write, and why it failed.
type Answer = (Done, Option<String>);

/// Writes under way.
pub struct Writer {
    client: kube::Client,
    running: JoinSet<Answer>,
    targets: HashMap<Id, Done>,
}

impl Writer {
    /// Nothing is written yet.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        Self { client: client.client(), running: JoinSet::new(), targets: HashMap::new() }
    }

    /// Writes what is due, until something was written. Does not end by itself while there is nothing to do; may be
    /// dropped at any time and called again.
    pub async fn turn(&mut self, reporter: &mut Reporter) {
        loop {
            while let Some(write) = reporter.next(Instant::now()) {
                let failed = failed(&write);
                let task = self.running.spawn(perform(self.client.clone(), write));
                self.targets.insert(task.id(), failed);
            }
            let due = reporter.due(Instant::now()).map(tokio::time::Instant::from_std);
            tokio::select! {
                Some(over) = self.running.join_next_with_id() => {
                    let (id, answer) = match over {
                        Ok((id, answer)) => (id, Some(answer)),
                        Err(error) => (error.id(), None),
                    };
                    let failed = self.targets.remove(&id).map(|done| (done, Some("a fault of ours".to_owned())));
                    if let Some((done, trouble)) = answer.or(failed) {
                        reporter.done(done, trouble, Instant::now(), Timestamp::now());
                    }
                    return;
                }
                () = until(due) => {}
            }
        }
    }
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What a write comes to whose task does not end well.
fn failed(write: &Write) -> Done {
    match write {
        Write::Status(key, _) => Done::Status(key.clone(), Outcome::Refused, None),
        Write::Event(place, _) => Done::Event(place.clone(), Outcome::Refused, Exists::Unsaid),
    }
}

async fn perform(client: kube::Client, write: Write) -> Answer {
    let late = failed(&write);
    let work = async {
        match write {
            Write::Status(key, body) => status(client, key, body).await,
            Write::Event(place, tell) => event(client, place, tell).await,
        }
    };
    match (tokio::time::timeout(ANSWER, work).await, late) {
        (Ok(answer), _) => answer,
        (Err(_), Done::Status(key, ..)) => (Done::Status(key, Outcome::Away, None), Some(no_answer())),
        (Err(_), Done::Event(place, ..)) => {
            (Done::Event(place, Outcome::Away, Exists::Unsaid), Some(no_answer()))
        }
    }
}

fn no_answer() -> String {
    format!("no answer within {ANSWER:?}")
}

async fn status(client: kube::Client, key: Key, body: Value) -> Answer {
    let (kind, namespace, name) = &key;
    let resource = resource(kind.group(), kind.versions()[0], kind.name(), kind.plural());
    let api: Api<DynamicObject> = match namespace.is_empty() {
        true => Api::all_with(client, &resource),
        false => Api::namespaced_with(client, namespace, &resource),
    };
    let parameters = PatchParams::apply(MANAGER).force();
    match api.patch_status(name, &parameters, &Patch::Apply(body)).await {
        Ok(object) => {
            let version = object.metadata.resource_version.and_then(|version| version.parse().ok());
            (Done::Status(key, Outcome::Written, version), None)
        }
        Err(error) => {
            // A conflict is one of the uid: the object is another one now.
            let (outcome, trouble) = outcome(&error, &[404, 409]);
            (Done::Status(key, outcome, None), trouble)
        }
    }
}

async fn event(client: kube::Client, place: Place, tell: Tell) -> Answer {
    let resource = resource("events.k8s.io", "v1", "Event", "events");
    let api: Api<DynamicObject> = Api::namespaced_with(client, &place.0, &resource);
    let written = match tell {
        Tell::First(event) => match serde_json::from_value(event) {
            Ok(event) => api.create(&PostParams::default(), &event).await.map(|_| ()),
            Err(error) => Err(kube::Error::SerdeError(error)),
        },
        Tell::Again(series) => {
            api.patch(&place.1, &PatchParams::default(), &Patch::Merge(series)).await.map(|_| ())
        }
    };
    match written {
        Ok(()) => (Done::Event(place, Outcome::Written, Exists::Unsaid), None),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            (Done::Event(place, Outcome::Written, Exists::Yes), None)
        }
        Err(error) => {
            let (outcome, trouble) = outcome(&error, &[404]);
            (Done::Event(place, outcome, Exists::Unsaid), trouble)
        }
    }
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// What an error comes to, and its words; these codes say that the object is gone.
fn outcome(error: &kube::Error, gone: &[u16]) -> (Outcome, Option<String>) {
    match error {
        kube::Error::Api(status) if gone.contains(&status.code) => (Outcome::Gone, None),
        kube::Error::Api(status) if status.code == 429 || status.code >= 500 => {
            (Outcome::Away, Some(format!("{} ({})", status.message, status.code)))
        }
        kube::Error::Api(status) => (Outcome::Refused, Some(format!("{} ({})", status.message, status.code))),
        other => (Outcome::Away, Some(other.to_string())),
    }
}
