//! Which kinds are policies that are read, and what is said of those that are not.
//!
//! Knows nothing of how an object is read. Called by the loader.

use crate::cilium::{CILIUM_GROUP, CiliumKind};
use crate::object::Source;
use crate::policy::PolicyKind;
use crate::problem::{Problem, Severity};
use crate::{GROUP, VERSION, fields};

/// The one version of the upstream `ClusterNetworkPolicy` that is read.
const CLUSTER_NETWORK_POLICY: &str = "policy.networking.k8s.io/v1alpha2";

/// The version of Cilium's policies; groups of CIDRs were `v2alpha1` before.
const CILIUM: &str = "cilium.io/v2";
const CILIUM_ALPHA: &str = "cilium.io/v2alpha1";

/// How a policy is read.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Namespaced(PolicyKind),
    ClusterNetwork,
    ClusterL7,
    Cilium(CiliumKind),
    CiliumCidrGroup,
}

/// How the policies of a kind are read, if they are.
pub(crate) fn policy_form(api: &str, kind: &str) -> Option<Form> {
    match kind {
        "NetworkPolicy" if api == "networking.k8s.io/v1" => Some(Form::Namespaced(PolicyKind::NetworkPolicy)),
        "L7NetworkPolicy" if is_ours(api) => Some(Form::Namespaced(PolicyKind::L7NetworkPolicy)),
        "ClusterL7NetworkPolicy" if is_ours(api) => Some(Form::ClusterL7),
        "ClusterNetworkPolicy" if api == CLUSTER_NETWORK_POLICY => Some(Form::ClusterNetwork),
        "CiliumNetworkPolicy" if api == CILIUM => Some(Form::Cilium(CiliumKind::Namespaced)),
        "CiliumClusterwideNetworkPolicy" if api == CILIUM => Some(Form::Cilium(CiliumKind::Clusterwide)),
        "CiliumCIDRGroup" if api == CILIUM || api == CILIUM_ALPHA => Some(Form::CiliumCidrGroup),
        _ => None,
    }
}

fn is_ours(api: &str) -> bool {
    api.split_once('/') == Some((GROUP, VERSION))
}

/// The problem of an object of a kind that is not read.
pub(crate) fn unread(api: &str, kind: &str, source: &Source) -> Problem {
    let group = api.split_once('/').map_or("", |(group, _)| group);
    let error =
        |path: &str, reason: String, remedy: String| source.problem(Severity::Error, path, reason, remedy);
    if api.is_empty() || kind.is_empty() {
        let path = if kind.is_empty() { "kind" } else { "apiVersion" };
        return error(
            path,
            "the object does not say what it is; it is not in force".into(),
            format!("write {path}"),
        );
    }
    if (group, kind) == ("policy.networking.k8s.io", "ClusterNetworkPolicy") {
        let reason = format!("{api} is no version of {kind} that is read; the object is not in force");
        return error("apiVersion", reason, format!("write {CLUSTER_NETWORK_POLICY}"));
    }
    if group == "policy.networking.k8s.io" {
        let reason = format!("{kind} is not read: ClusterNetworkPolicy replaced it; not in force");
        return error(
            "kind",
            reason,
            format!("say it with ClusterNetworkPolicy of {CLUSTER_NETWORK_POLICY}"),
        );
    }
    if group == CILIUM_GROUP
        && matches!(kind, "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy" | "CiliumCIDRGroup")
    {
        let reason = format!("{api} is no version of {kind} that is read; the object is not in force");
        return error("apiVersion", reason, format!("write {CILIUM}"));
    }
    if group == GROUP {
        let kinds = ["L7NetworkPolicy", "ClusterL7NetworkPolicy"];
        return match fields::nearest(kind, &kinds) {
            Some(near) if near == kind => {
                let reason = format!("{api} is no version of {kind}; the object is not in force");
                error("apiVersion", reason, format!("write {GROUP}/{VERSION}"))
            }
            near => {
                let reason = format!("{GROUP} has no kind {kind}; the object is not in force");
                let remedy = format!("did you mean `{}`?", near.unwrap_or(kinds[0]));
                error("kind", reason, remedy)
            }
        };
    }
    if kind.ends_with("NetworkPolicy")
        || (matches!(group, "" | "networking.k8s.io") && kind == "L7NetworkPolicy")
    {
        let reason = format!("{api} {kind} is not read; it is not in force here");
        let remedy =
            "NetworkPolicy is of networking.k8s.io/v1, L7NetworkPolicy of policy.sluice.dev/v1alpha1";
        return error("apiVersion", reason, remedy.into());
    }
    source.problem(Severity::Info, "kind", format!("{api} {kind} is not read"), "")
}
