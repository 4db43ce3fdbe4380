//! The store where watches and the controller's loop meet: watches write, the loop reads when something has changed.
//!
//! Knows nothing of watches and of compiling. Called by both.

use crate::cluster::kinds::Kind;
use crate::cluster::store::{Event, Known, PolicyMeta, Store};
use crate::follow::Timing;
use serde_json::{Value, json};
use sluice_crd::{Category, Loaded, Problem, Severity, Source};
use std::collections::BTreeMap;
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The objects of a cluster, and what keeps their watches from going on.
#[derive(Clone, Default)]
pub struct Shared {
    inner: Arc<Inner>,
}

/// What is watched of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Whether it is defined.
    Definition,
    /// Its objects.
    Objects,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    store: Store,
    /// Why a watch does not go on; what was known stays meanwhile.
    trouble: BTreeMap<(Kind, Part), String>,
    /// By kind: why nothing of it is read, though its definition is there.
    unread: BTreeMap<Kind, String>,
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a watch tells.
    pub fn take(&self, kind: Kind, event: Event) {
        let complete = matches!(event, Event::Complete { .. });
        let mut state = self.locked();
        let before = state.store.known(kind);
        let mut changed = state.store.take(kind, event);
        let known = state.store.known(kind);
        drop(state);
        // That there is nothing of a kind is said as well.
        changed |= discriminant(&before) != discriminant(&known);
        if let (true, Known::Objects(count)) = (complete, known) {
            tracing::info!("{}: listed, {count} objects", kind.name());
        }
        if changed {
            self.inner.changed.notify_one();
        }
    }

    /// The API server answers a watch.
    pub fn works(&self, kind: Kind, part: Part) {
        let mended = self.locked().trouble.remove(&(kind, part)).is_some();
        if mended {
            tracing::info!("{}: the API server answers again", kind.name());
            self.inner.changed.notify_one();
        }
    }

    /// A watch fails. What is known stays; each reason is said once.
    pub fn fails(&self, kind: Kind, part: Part, reason: &str) {
        let before = self.locked().trouble.insert((kind, part), reason.to_owned());
        if before.as_deref() != Some(reason) {
            let whose = if part == Part::Definition { "its definition " } else { "" };
            tracing::warn!("{}: {whose}{reason}; what was known stays in force", kind.name());
            self.inner.changed.notify_one();
        }
    }

    /// Says whether a definition has versions that are read; why not, if not.
    pub fn unread(&self, kind: Kind, reason: Option<&str>) {
        let mut state = self.locked();
        let before = match reason {
            Some(reason) => state.unread.insert(kind, reason.to_owned()),
            None => state.unread.remove(&kind),
        };
        drop(state);
        if before.as_deref() != reason {
            self.inner.changed.notify_one();
        }
    }

    /// The objects, if every kind is known, and the policies among them as the API server knows them.
    #[must_use]
    pub fn loaded(&self) -> Option<(Loaded, Vec<PolicyMeta>)> {
        let state = self.locked();
        let mut loaded = state.store.loaded()?;
        loaded.problems.extend(state.unread.iter().map(|(kind, reason)| unread(*kind, reason)));
        Some((loaded, state.store.policies()))
    }

    /// The policies as the API server knows them now.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyMeta> {
        self.locked().store.policies()
    }

    /// What is known of each kind, as JSON for the status.
    #[must_use]
    pub fn status(&self) -> Value {
        let state = self.locked();
        let kinds = Kind::ALL.iter().map(|kind| {
            let (known, objects) = match state.store.known(*kind) {
                Known::Nothing => ("Pending", None),
                Known::Absent => ("Absent", None),
                Known::Objects(count) => ("Listed", Some(count)),
            };
            let parts = [Part::Objects, Part::Definition];
            let failing = parts.iter().find_map(|part| state.trouble.get(&(*kind, *part)));
            let trouble = failing.or_else(|| state.unread.get(kind));
            (kind.name().to_owned(), json!({"state": known, "objects": objects, "trouble": trouble}))
        });
        json!({"complete": state.store.is_complete(), "kinds": kinds.collect::<serde_json::Map<_, _>>()})
    }

    /// Says until shutdown that the objects have changed, or what is known of them has: a burst is waited out, within
    /// a bound.
    #[must_use]
    pub fn changes(&self, timing: Timing, shutdown: CancellationToken) -> mpsc::Receiver<()> {
        // One waiting message says as much as many.
        let (told, changes) = mpsc::channel(1);
        let shared = self.clone();
        let task = async move {
            loop {
                shared.inner.changed.notified().await;
                shared.settle(timing).await;
                if told.send(()).await.is_err() {
                    return;
                }
            }
        };
        tokio::spawn(async move { shutdown.run_until_cancelled_owned(task).await });
        changes
    }

    async fn settle(&self, timing: Timing) {
        let end = Instant::now() + timing.longest;
        loop {
            let until = end.min(Instant::now() + timing.quiet);
            let more = tokio::time::timeout_at(until, self.inner.changed.notified()).await;
            if more.is_err() || Instant::now() >= end {
                return;
            }
        }
    }
}

fn unread(kind: Kind, reason: &str) -> Problem {
    let definition = kind.definition().unwrap_or_default();
    let source = Source::of_object(&format!("CustomResourceDefinition/{definition}"));
    let remedy = format!("serve {}", kind.versions().join(" or "));
    source.problem(Severity::Error, "spec.versions", reason, remedy).of(Category::NotRead)
}
