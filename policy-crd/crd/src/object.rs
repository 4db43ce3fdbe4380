//! The objects of one cluster, as read, each with the place it came from.
//!
//! Knows nothing of selection or of rules; the compiler indexes them.

use crate::cilium::{CiliumCidrGroupObject, CiliumPolicyObject};
use crate::policy::PolicyObject;
use crate::problem::{Category, Place, Problem, Severity};
use crate::same::Placed;
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

impl Objects {
    /// Takes over what another one has, behind what is here.
    pub fn extend(&mut self, other: &Self) {
        // The pattern names every field: a new one has to be thought of here.
        let Self {
            namespaces,
            nodes,
            pods,
            services,
            endpoint_slices,
            policies,
            cluster_network_policies,
            cluster_l7_policies,
            cilium,
            cidr_groups,
        } = other;
        self.namespaces.extend_from_slice(namespaces);
        self.nodes.extend_from_slice(nodes);
        self.pods.extend_from_slice(pods);
        self.services.extend_from_slice(services);
        self.endpoint_slices.extend_from_slice(endpoint_slices);
        self.policies.extend_from_slice(policies);
        self.cluster_network_policies.extend_from_slice(cluster_network_policies);
        self.cluster_l7_policies.extend_from_slice(cluster_l7_policies);
        self.cilium.extend_from_slice(cilium);
        self.cidr_groups.extend_from_slice(cidr_groups);
    }
}

/// Whether two lists say the same, item by item.
fn same<T: Placed>(one: &[T], other: &[T]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a.says_the_same(b))
}

impl Objects {
    /// Whether another one has the same objects in the same order, wherever they stood.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            namespaces,
            nodes,
            pods,
            services,
            endpoint_slices,
            policies,
            cluster_network_policies,
            cluster_l7_policies,
            cilium,
            cidr_groups,
        } = self;
        namespaces == &other.namespaces
            && nodes == &other.nodes
            && pods == &other.pods
            && services == &other.services
            && endpoint_slices == &other.endpoint_slices
            && same(policies, &other.policies)
            && same(cluster_network_policies, &other.cluster_network_policies)
            && same(cluster_l7_policies, &other.cluster_l7_policies)
            && same(cilium, &other.cilium)
            && same(cidr_groups, &other.cidr_groups)
    }
}

/// An object and its place. Both are shared: whoever keeps a cluster's objects hands them out at every change.
#[derive(Debug)]
pub struct Sourced<T> {
    /// The object.
    pub object: Arc<T>,
    /// Its place.
    pub source: Source,
}

impl<T: PartialEq> PartialEq for Sourced<T> {
    /// Whether the objects are the same, wherever they stood.
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

impl<T> Clone for Sourced<T> {
    fn clone(&self) -> Self {
        Self { object: self.object.clone(), source: self.source.clone() }
    }
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
