//! Label selectors and address blocks, evaluated on the thing itself.
//!
//! Source: Kubernetes' "Labels and Selectors", and the fields of `LabelSelector` and `IPBlock` in the API reference.

use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The labels of one object.
pub(crate) type Labels = BTreeMap<String, String>;

/// The items of a list; none where it is absent.
pub(crate) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The text of a field; empty where it is absent.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether the field is there.
pub(crate) fn given(value: &Value) -> bool {
    !value.is_null()
}

/// The labels that a manifest gives an object.
pub(crate) fn labels_of(object: &Value) -> Labels {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    labels.map(|(key, value)| (key.clone(), text(value).to_owned())).collect()
}

/// "The result of `matchLabels` and `matchExpressions` are `ANDed`. An empty label selector matches all objects."
pub(crate) fn matches(selector: &Value, labels: &Labels) -> bool {
    let equal = |(key, value): (&String, &Value)| labels.get(key).map(String::as_str) == value.as_str();
    selector["matchLabels"].as_object().into_iter().flatten().all(equal)
        && items(&selector["matchExpressions"]).all(|expression| expression_matches(expression, labels))
}

fn expression_matches(expression: &Value, labels: &Labels) -> bool {
    let label = labels.get(text(&expression["key"]));
    let among = |label: &String| items(&expression["values"]).any(|value| value == label.as_str());
    match text(&expression["operator"]) {
        "In" => label.is_some_and(among),
        // "all resources with … no labels with the key" too.
        "NotIn" => !label.is_some_and(among),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        other => panic!("no operator {other}"),
    }
}

/// "`cidr` is a string representing the IPBlock", "`except` is a slice of CIDRs that should not be included".
pub(crate) fn block_contains(block: &Value, address: IpAddr) -> bool {
    contains(text(&block["cidr"]), address)
        && !items(&block["except"]).any(|except| contains(text(except), address))
}

/// Whether a CIDR contains an address. An address of the other family is in none.
pub(crate) fn contains(cidr: &str, address: IpAddr) -> bool {
    let (network, length) = cidr.split_once('/').expect("a CIDR");
    let length: u32 = length.parse().expect("a prefix length");
    match (network.parse().expect("an address"), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            same_front(u32::from(network).into(), u32::from(address).into(), 32 - length)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            same_front(u128::from(network), u128::from(address), 128 - length)
        }
        _ => false,
    }
}

fn same_front(one: u128, other: u128, ignored: u32) -> bool {
    let front = |bits: u128| bits.checked_shr(ignored).unwrap_or(0);
    front(one) == front(other)
}
