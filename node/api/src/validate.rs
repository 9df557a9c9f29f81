//! What must hold of an object of each kind.

use serde_json::Value;

use crate::field::Errors;
use crate::kinds::Kind;

pub(crate) fn metadata(_kind: &Kind, _object: &Value, _errors: &mut Errors) {}
pub(crate) fn metadata_update(_old: &Value, _new: &Value, _errors: &mut Errors) {}

use crate::rules::KindRules;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount};
impl KindRules for Deployment {}
impl KindRules for ReplicaSet {}
impl KindRules for Lease {}
impl KindRules for ConfigMap {}
impl KindRules for Event {}
impl KindRules for Namespace {}
impl KindRules for Node {}
impl KindRules for Pod {}
impl KindRules for Secret {}
impl KindRules for Service {}
impl KindRules for ServiceAccount {}
