//! Writes the schemas of all kinds, as the API reference describes them, into one compressed file that the
//! crate carries.
//!
//! `k8s-openapi` knows them with its feature `schemars`. Used while building, that costs the program the
//! compressed text and nothing else; used in the program it would cost ten times that, for something that is
//! asked for once by each kubectl.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectRulesReview};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Binding, ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, Status};
use schemars::generate::SchemaSettings;

macro_rules! known {
    ($generator:ident: $($type:ty),+ $(,)?) => { $($generator.subschema_for::<$type>();)+ };
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut generator = SchemaSettings::openapi3().into_generator();
    known!(generator:
        Binding, ConfigMap, CustomResourceDefinition, DeleteOptions, Deployment, EndpointSlice, Endpoints, Event, Eviction, Lease, ListMeta,
        Namespace, Node, Pod, ReplicaSet, Scale, Secret, SelfSubjectAccessReview, SelfSubjectReview,
        SelfSubjectRulesReview, Service, ServiceAccount, Status,
    );
    let schemas = serde_json::to_vec(&generator.take_definitions(true)).expect("schemas are JSON");
    let directory = std::env::var_os("OUT_DIR").expect("cargo says where the file goes");
    let file = std::fs::File::create(Path::new(&directory).join("schemas.json.gz"));
    let mut encoder = GzEncoder::new(file.expect("cargo made the directory"), Compression::best());
    encoder.write_all(&schemas).expect("the file can be written");
    encoder.finish().expect("the file can be written");
}
