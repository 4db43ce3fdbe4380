//! The kinds that are read from an API server, and what they are called there.
//!
//! Knows nothing of what an object of them says. Called by the store and by the watches.

/// One kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// Ours.
    L7NetworkPolicy,
    /// Ours.
    ClusterL7NetworkPolicy,
    /// `policy.networking.k8s.io` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// Cilium's.
    CiliumNetworkPolicy,
    /// Cilium's.
    CiliumClusterwideNetworkPolicy,
    /// Cilium's.
    CiliumCIDRGroup,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::L7NetworkPolicy,
        Self::ClusterL7NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::CiliumCIDRGroup,
    ];

    /// As objects name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::L7NetworkPolicy => "L7NetworkPolicy",
            Self::ClusterL7NetworkPolicy => "ClusterL7NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::CiliumCIDRGroup => "CiliumCIDRGroup",
        }
    }

    /// As paths name it.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::NetworkPolicy => "networkpolicies",
            Self::L7NetworkPolicy => "l7networkpolicies",
            Self::ClusterL7NetworkPolicy => "clusterl7networkpolicies",
            Self::ClusterNetworkPolicy => "clusternetworkpolicies",
            Self::CiliumNetworkPolicy => "ciliumnetworkpolicies",
            Self::CiliumClusterwideNetworkPolicy => "ciliumclusterwidenetworkpolicies",
            Self::CiliumCIDRGroup => "ciliumcidrgroups",
        }
    }

    /// Its group; empty for the core's.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::NetworkPolicy => "networking.k8s.io",
            Self::L7NetworkPolicy | Self::ClusterL7NetworkPolicy => sluice_crd::GROUP,
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io",
            Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy | Self::CiliumCIDRGroup => {
                sluice_crd::CILIUM_GROUP
            }
        }
    }

    /// The versions that are read, the first that the API server serves.
    #[must_use]
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => &["v1"],
            Self::EndpointSlice | Self::NetworkPolicy => &["v1"],
            Self::L7NetworkPolicy | Self::ClusterL7NetworkPolicy => &[sluice_crd::VERSION],
            Self::ClusterNetworkPolicy => &["v1alpha2"],
            Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy => &["v2"],
            Self::CiliumCIDRGroup => &["v2", "v2alpha1"],
        }
    }

    /// Whether its objects are policies.
    #[must_use]
    pub const fn is_policy(self) -> bool {
        matches!(
            self,
            Self::NetworkPolicy
                | Self::L7NetworkPolicy
                | Self::ClusterL7NetworkPolicy
                | Self::ClusterNetworkPolicy
                | Self::CiliumNetworkPolicy
                | Self::CiliumClusterwideNetworkPolicy
        )
    }

    /// Whether it is a kind of ours, whose status is ours to write.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::L7NetworkPolicy | Self::ClusterL7NetworkPolicy)
    }

    /// As objects of a version name it.
    #[must_use]
    pub fn api_version(self, version: &str) -> String {
        if self.group().is_empty() { version.to_owned() } else { format!("{}/{version}", self.group()) }
    }

    /// The name of its definition, if it needs one: such a kind may be missing, and may come and go.
    #[must_use]
    pub fn definition(self) -> Option<String> {
        let custom = self >= Self::L7NetworkPolicy;
        custom.then(|| format!("{}.{}", self.plural(), self.group()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_stands_in_the_list_once() {
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        assert!(Kind::ALL.is_sorted());
    }

    #[test]
    fn our_kinds_are_called_as_their_definitions_call_them() {
        for (_, definition) in sluice_crd::custom_resource_definitions() {
            let names = &definition["spec"]["names"];
            let kind =
                Kind::ALL.into_iter().find(|kind| names["kind"] == kind.name()).expect("a kind of ours");
            assert_eq!(names["plural"], kind.plural());
            assert_eq!(definition["spec"]["group"], kind.group());
            assert_eq!(definition["metadata"]["name"].as_str().map(str::to_owned), kind.definition());
        }
    }

    #[test]
    fn what_kubernetes_always_has_needs_no_definition() {
        let built_in: Vec<&str> =
            Kind::ALL.iter().filter(|kind| kind.definition().is_none()).map(|kind| kind.name()).collect();
        assert_eq!(built_in, ["Namespace", "Node", "Pod", "Service", "EndpointSlice", "NetworkPolicy"]);
    }
}
