//! Requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Quantity;

type Amounts = Option<BTreeMap<String, Text>>;

/// Resources that a container may ask for without a prefix in their names.
const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// Requests follow limits where only those are given; amounts become canonical.
pub(super) fn default(resources: &mut ResourceRequirements) {
    for (name, limit) in resources.limits.iter().flatten() {
        resources.requests.get_or_insert_default().entry(name.clone()).or_insert_with(|| limit.clone());
    }
    canonical(&mut resources.limits);
    canonical(&mut resources.requests);
}

/// Amounts in their canonical form. What is no amount stays for validation to name.
pub(super) fn canonical(amounts: &mut Amounts) {
    for amount in amounts.iter_mut().flat_map(BTreeMap::values_mut) {
        canonical_one(amount);
    }
}

pub(super) fn canonical_one(amount: &mut Text) {
    if let Ok(quantity) = Quantity::try_from(&*amount) {
        *amount = quantity.into();
    }
}

pub(super) fn validate(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    let limits = amounts(&resources.limits, &path.child("limits"), errors);
    let requests = amounts(&resources.requests, &path.child("requests"), errors);
    for (name, request) in requests {
        match limits.get(name) {
            Some(limit) if request > *limit => errors.invalid(
                &path.child("requests"),
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            ),
            _ => {}
        }
    }
}

/// The amounts that are well-formed; the others are named in `errors`.
pub(super) fn amounts<'a>(
    amounts: &'a Amounts,
    path: &Path,
    errors: &mut Errors,
) -> BTreeMap<&'a str, Quantity> {
    let mut known = BTreeMap::new();
    for (name, text) in amounts.iter().flatten() {
        let path = path.key(name);
        if let Err(fault) = names::qualified(name) {
            errors.invalid(&path, name, fault);
        } else if !name.contains('/') && !STANDARD.contains(&name.as_str()) && !name.starts_with("hugepages-")
        {
            errors.invalid(&path, name, "must be a standard resource for containers");
        }
        if let Some(quantity) = amount(text, &path, errors) {
            known.insert(name.as_str(), quantity);
        }
    }
    known
}

/// One amount, which may not be less than nothing.
pub(super) fn amount(text: &Text, path: &Path, errors: &mut Errors) -> Option<Quantity> {
    match Quantity::try_from(text) {
        Ok(quantity) if quantity.is_negative() => {
            errors.invalid(path, &text.0, "must be greater than or equal to 0");
            None
        }
        Ok(quantity) => Some(quantity),
        Err(error) => {
            errors.invalid(path, &text.0, error.to_string());
            None
        }
    }
}
