//! The objects of one cluster, as read, each with the place it came from.
//!
//! Knows nothing of selection or of rules; the compiler indexes them.

use crate::cilium::{CiliumCidrGroupObject, CiliumPolicyObject};
use crate::policy::PolicyObject;
use crate::problem::{Category, Place, Problem, Severity};
use crate::tiered::{ClusterL7Object, ClusterNetworkObject};
use crate::yaml::Spans;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::sync::Arc;

/// Everything that is judged by and about.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Namespaces.
    pub namespaces: Vec<Sourced<Namespace>>,
    /// Nodes.
    pub nodes: Vec<Sourced<Node>>,
    /// Pods.
    pub pods: Vec<Sourced<Pod>>,
    /// Services.
    pub services: Vec<Sourced<Service>>,
    /// `EndpointSlices`.
    pub endpoint_slices: Vec<Sourced<EndpointSlice>>,
    /// `NetworkPolicy` and `L7NetworkPolicy` objects.
    pub policies: Vec<PolicyObject>,
    /// `ClusterNetworkPolicy` objects.
    pub cluster_network_policies: Vec<ClusterNetworkObject>,
    /// `ClusterL7NetworkPolicy` objects.
    pub cluster_l7_policies: Vec<ClusterL7Object>,
    /// `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` objects.
    pub cilium: Vec<CiliumPolicyObject>,
    /// `CiliumCIDRGroup` objects.
    pub cidr_groups: Vec<CiliumCidrGroupObject>,
}

/// An object and its place.
#[derive(Clone, Debug)]
pub struct Sourced<T> {
    /// The object.
    pub object: T,
    /// Its place.
    pub source: Source,
}

/// Where an object stood, and what it is called.
#[derive(Clone, Debug)]
pub struct Source {
    pub(crate) file: Arc<str>,
    pub(crate) spans: Arc<Spans>,
    /// What stands before the object's own paths in its document: `items[3].` in a list.
    pub(crate) prefix: Arc<str>,
    pub(crate) object: Option<Arc<str>>,
}

impl Source {
    /// The place of an object that was in no file, as `Kind/namespace/name`.
    #[must_use]
    pub fn of_object(object: &str) -> Self {
        Self { file: "".into(), spans: Arc::default(), prefix: "".into(), object: Some(object.into()) }
    }

    /// The object, as `Kind/namespace/name`.
    #[must_use]
    pub fn object(&self) -> Option<&Arc<str>> {
        self.object.as_ref()
    }

    /// The file; empty if the object came from elsewhere.
    #[must_use]
    pub fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// Whether problems of the other one stand at the same places.
    #[must_use]
    pub fn is_at_the_same_place(&self, other: &Self) -> bool {
        (&self.file, &self.prefix, &self.object) == (&other.file, &other.prefix, &other.object)
            && (Arc::ptr_eq(&self.spans, &other.spans) || self.spans == other.spans)
    }

    /// A problem at a path of this object.
    #[must_use]
    pub fn problem(
        &self,
        severity: Severity,
        path: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        let Place { file, line, column, end_column } = self.place(path);
        Problem {
            file,
            line,
            column,
            severity,
            object: self.object.clone(),
            path: path.to_owned(),
            reason: reason.into(),
            remedy: remedy.into(),
            end_column,
            category: Category::usual(severity),
        }
    }

    /// Where a path of this object stands.
    #[must_use]
    pub fn place(&self, path: &str) -> Place {
        let full = format!("{}{path}", self.prefix);
        let extent = self.spans.find(full.trim_end_matches('.')).unwrap_or_default();
        let (line, column) = extent.at;
        Place { file: self.file.clone(), line, column, end_column: extent.end }
    }

    /// Whether a path of this object is written.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.spans.has(&format!("{}{path}", self.prefix))
    }

    /// The same place without the positions of its fields: for kinds that come in great numbers.
    pub(crate) fn slim(&self) -> Self {
        let at = self.spans.find(self.prefix.trim_end_matches('.'));
        Self {
            file: self.file.clone(),
            spans: Arc::new(Spans::at(at)),
            prefix: "".into(),
            object: self.object.clone(),
        }
    }
}
