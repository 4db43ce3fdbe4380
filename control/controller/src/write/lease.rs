//! The Lease of the one who writes: kept for as long as control runs, given back when it stops.
//!
//! Knows nothing of what is written. Started by the controller's loop.

use crate::cluster::Client;
use crate::write::election::{Election, LEASE, PERIOD, Step};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::Value;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

/// What is not answered by then is asked again: well within the time that a holder believes to be one.
const ANSWER: Duration = Duration::from_secs(3);

/// Whether this control writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lead {
    /// Until when, unless more is said.
    pub until: Option<Instant>,
    /// What keeps the Lease from being looked at.
    pub trouble: Option<String>,
}

/// Wants the Lease until shutdown, and says whether it is held. The task ends once it is given back.
#[must_use]
pub fn run(
    client: &Client,
    namespace: &str,
    shutdown: &CancellationToken,
) -> (watch::Receiver<Lead>, JoinHandle<()>) {
    let (tell, told) = watch::channel(Lead::default());
    let resource = ApiResource {
        group: "coordination.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "coordination.k8s.io/v1".to_owned(),
        kind: "Lease".to_owned(),
        plural: "leases".to_owned(),
    };
    let candidate = Candidate {
        api: Api::namespaced_with(client.client(), namespace, &resource),
        namespace: namespace.to_owned(),
        election: Election::new(name()),
    };
    (told, tokio::spawn(candidate.run(tell, shutdown.clone())))
}

/// The pod's name, and what no other process has.
fn name() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| LEASE.to_owned());
    format!("{host}_{:016x}", RandomState::new().hash_one(std::process::id()))
}

struct Candidate {
    api: Api<DynamicObject>,
    namespace: String,
    election: Election,
}

impl Candidate {
    async fn run(mut self, tell: watch::Sender<Lead>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let turn = shutdown.run_until_cancelled(timeout(ANSWER, self.turn())).await;
            let Some(turn) = turn else { break };
            let trouble = turn.unwrap_or_else(|_| Err(format!("no answer within {ANSWER:?}"))).err();
            let led = tell.borrow().until.is_some();
            let lead = Lead { until: self.election.until(), trouble };
            if led != lead.until.is_some() {
                tracing::info!("this control {} the Lease", if led { "has lost" } else { "holds" });
            }
            tell.send_if_modified(|last| std::mem::replace(last, lead.clone()) != lead);
        }
        // Nothing is written any more; the next need not wait.
        tell.send_replace(Lead::default());
        let _ = timeout(ANSWER, self.release()).await;
    }

    /// One look, and what follows from it.
    async fn turn(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let lease = self.get().await?;
        let parameters = PostParams::default();
        let written = match self.election.look(lease.as_ref(), &self.namespace, began, &time()) {
            Step::Wait => return Ok(()),
            Step::Create(lease) => self.api.create(&parameters, &object(lease)?).await,
            Step::Update(lease) => self.api.replace(LEASE, &parameters, &object(lease)?).await,
        };
        match written {
            Ok(_) => {
                self.election.won(began);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.election.lost(true);
                Ok(())
            }
            Err(error) => {
                self.election.lost(false);
                Err(words(&error))
            }
        }
    }

    async fn get(&self) -> Result<Option<Value>, String> {
        let lease = self.api.get_opt(LEASE).await.map_err(|error| words(&error))?;
        lease.map(|lease| serde_json::to_value(lease).map_err(|error| error.to_string())).transpose()
    }

    async fn release(&self) -> Result<(), String> {
        let Some(lease) = self.get().await? else { return Ok(()) };
        if let Some(lease) = self.election.release(&lease, &time()) {
            let written = self.api.replace(LEASE, &PostParams::default(), &object(lease)?).await;
            written.map_err(|error| words(&error))?;
        }
        Ok(())
    }
}

fn object(lease: Value) -> Result<DynamicObject, String> {
    serde_json::from_value(lease).map_err(|error| error.to_string())
}

fn time() -> String {
    format!("{:.6}", Timestamp::now())
}

fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}
