//! A program written with kube-rs, started on a machine that reaches every node.

use std::process::ExitCode;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt, runtime};
use serde_json::json;

use crate::house::House;
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![a_kube_program_lists_and_watches_pods];

/// The first word that makes this test that program.
const WORD: &str = "watch-pods";

fn a_kube_program_lists_and_watches_pods() {
    let space = House::shared().namespace("watching");
    let pod = || json!({ "containers": [{ "name": "main", "image": "skein.dev/tiny", "args": ["sleep"] }] });
    space.run("early", pod());
    let user =
        User::of(&space.house, &std::env::current_exe().expect("this test is a file"), "three", &space.name);
    let mut program = user.start(&[WORD]);
    program.line("listed early");
    program.line("watching");
    space.run("later", pod());
    program.line("watched later");
    // The reflector of controllers: list, watch and resume in one.
    program.line("applied later");
}

/// Is the program, if this process was started as it: `watch-pods --context C --namespace N`.
pub(crate) fn main_if_program() -> Option<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [word, _, context, _, namespace] = words.as_slice() else { return None };
    if word != WORD {
        return None;
    }
    Some(match crate::house::wait(watch_pods(context, namespace)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

async fn watch_pods(context: &str, namespace: &str) -> Result<(), Box<dyn std::error::Error>> {
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(Kubeconfig::read()?, &options).await?;
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, namespace);
    let listed = pods.list(&ListParams::default()).await?;
    for pod in &listed {
        println!("listed {}", pod.name_any());
    }
    let version = listed.metadata.resource_version.unwrap_or_default();
    let mut events = pods.watch(&WatchParams::default(), &version).await?.boxed();
    println!("watching");
    while let Some(event) = events.try_next().await? {
        if let kube::api::WatchEvent::Added(pod) = event {
            println!("watched {}", pod.name_any());
            break;
        }
    }
    let mut applied = std::pin::pin!(runtime::WatchStreamExt::applied_objects(runtime::watcher(
        pods,
        runtime::watcher::Config::default()
    )));
    while let Some(pod) = applied.try_next().await? {
        println!("applied {}", pod.name_any());
    }
    Ok(())
}
